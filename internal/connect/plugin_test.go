package connect_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"outboxsaga/internal/connect"
	"outboxsaga/internal/devstack"
	"outboxsaga/internal/stacktest"
	"outboxsaga/internal/system"
)

// A worker whose plugin.path is empty says RUNNING and takes no connector.
func withoutPlugin(t *testing.T, s *devstack.Stack) {
	pid, running := s.PID(devstack.Connect)
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if !running || err != nil {
		t.Skip("the worker's command line cannot be read here")
	}
	args := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
	text, err := os.ReadFile(args[len(args)-1])
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("the worker's files are in its container")
	}
	if err != nil {
		t.Fatal(err)
	}
	ports, err := devstack.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	url := fmt.Sprintf("http://127.0.0.1:%d", ports[0])
	// A cluster of its own: the last line of a key counts.
	text = fmt.Appendf(text, "\nlisteners=%s\nplugin.path=%s\ngroup.id=bare\nconfig.storage.topic=bare-config\noffset.storage.topic=bare-offset\nstatus.storage.topic=bare-status\n", url, dir)
	args[len(args)-1] = filepath.Join(dir, "worker.properties")
	if err := os.WriteFile(args[len(args)-1], text, 0o644); err != nil {
		t.Fatal(err)
	}
	bare := connect.Client{URL: url}
	p := devstack.Process{Name: "bare-worker", Args: args, Port: ports[0], Ready: func(ctx context.Context) error { return system.Ask(ctx, url+"/connectors") }}
	if err := s.Start(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	defer s.Stop(t.Context(), p.Name)
	const want = "does not have the Debezium plugin: unpack debezium-connector-postgres into a folder of its plugin.path and restart it"
	if err := bare.CheckPlugin(t.Context()); err == nil || !strings.Contains(err.Error(), url) || !strings.Contains(err.Error(), want) {
		t.Error(err)
	}
	files, err := connect.Files(filepath.Join(stacktest.Root(), "connectors"))
	if err != nil {
		t.Fatal(err)
	}
	if err := bare.Put(t.Context(), files[0]); err == nil || !strings.Contains(err.Error(), want) {
		t.Error(err)
	}
}
