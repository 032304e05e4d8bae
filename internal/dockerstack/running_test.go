package dockerstack_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"outboxsaga/internal/connect"
	"outboxsaga/internal/devstack"
	"outboxsaga/internal/dockerstack"
	"outboxsaga/internal/stacktest"
	"outboxsaga/internal/system"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// child tells this program to be a test program that ends badly, and how: see TestNothingIsLeft.
const child = "DOCKERSTACK_TEST_CHILD"

func TestMain(m *testing.M) { stacktest.Main(m) }

// TestChild is the test of the child. It starts a container, says at which port, and ends badly when it is told to.
func TestChild(t *testing.T) {
	how := os.Getenv(child)
	if how == "" {
		t.Skip("is run by TestNothingIsLeft")
	}
	url, err := pgx.ParseConfig(stacktest.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("port %d\n", url.Port)
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	switch how {
	case "test fails":
		t.Fatal("as it was told to")
	case "test panics":
		panic("as it was told to")
	}
	select {}
}

// The test stack, of processes or of containers, runs with what the shared files say: asked is what runs.
func TestWhatRunsIsWhatTheFilesSay(t *testing.T) {
	s, err := stacktest.New("files")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	ctx := t.Context()
	if err := s.Up(ctx); err != nil {
		t.Fatal(err)
	}
	if err := system.Provision(ctx, s.PostgresURL("postgres"), nil, s.Brokers(), 1); err != nil {
		t.Fatal(err)
	}
	if err := system.Register(ctx, s); err != nil {
		t.Fatal(err)
	}
	t.Run("postgresql.conf", func(t *testing.T) { postgresSays(t, s) })
	t.Run("broker.properties", func(t *testing.T) { brokerSays(t, s) })
	t.Run("worker.properties", func(t *testing.T) { workerSays(t, s) })
	t.Run("connectors", func(t *testing.T) { connectSays(t, s) })
}

func settings(t *testing.T, file string) map[string]string {
	t.Helper()
	f, err := os.Open(filepath.Join(stacktest.Root(), "debezium", file))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	found := map[string]string{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		key, value, ok := strings.Cut(lines.Text(), "=")
		if ok && !strings.HasPrefix(key, "#") {
			found[strings.TrimSpace(key)] = strings.Trim(strings.TrimSpace(value), "'")
		}
	}
	return found
}

func same(t *testing.T, want, got map[string]string, byPlace ...string) {
	t.Helper()
	if len(want) < 5 {
		t.Fatalf("only %d settings are asked for", len(want))
	}
	for _, key := range byPlace {
		delete(want, key)
	}
	for key, value := range want {
		if got[key] != value {
			t.Errorf("%s is %q, want %q", key, got[key], value)
		}
	}
}

func postgresSays(t *testing.T, s *devstack.Stack) {
	conn, err := pgx.Connect(t.Context(), s.PostgresURL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	rows, err := conn.Query(t.Context(), `SELECT name, setting FROM pg_file_settings WHERE error IS NULL AND sourcefile LIKE '%/postgresql.conf'`)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	var name, setting string
	if _, err := pgx.ForEachRow(rows, []any{&name, &setting}, func() error { got[name] = setting; return nil }); err != nil {
		t.Fatal(err)
	}
	same(t, settings(t, "postgresql.conf"), got, "listen_addresses")
	if err := conn.QueryRow(t.Context(), `SHOW max_slot_wal_keep_size`).Scan(&setting); err != nil || setting != settings(t, "postgresql.conf")["max_slot_wal_keep_size"] {
		t.Error("the file is read, but not in force:", setting, err)
	}
}

func brokerSays(t *testing.T, s *devstack.Stack) {
	client, err := kgo.NewClient(kgo.SeedBrokers(s.Brokers()...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	configs, err := kadm.NewClient(client).DescribeBrokerConfigs(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, c := range configs[0].Configs {
		got[c.Key] = c.MaybeValue()
	}
	same(t, settings(t, "broker.properties"), got, "listener.security.protocol.map")
}

// The worker tells its settings nobody; its topics and its group do.
func workerSays(t *testing.T, s *devstack.Stack) {
	client, err := kgo.NewClient(kgo.SeedBrokers(s.Brokers()...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	want := settings(t, "worker.properties")
	topics, err := admin.ListTopics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"config", "offset", "status"} {
		partitions := want[kind+".storage.partitions"]
		if kind == "config" {
			partitions = "1"
		}
		topic := topics[want[kind+".storage.topic"]]
		if got := fmt.Sprint(len(topic.Partitions)); got != partitions {
			t.Errorf("topic %s has %s partitions, want %s", want[kind+".storage.topic"], got, partitions)
		}
	}
	groups, err := admin.DescribeGroups(t.Context(), want["group.id"])
	if err != nil || len(groups[want["group.id"]].Members) != 1 {
		t.Errorf("no worker is in the group %s: %v %v", want["group.id"], groups, err)
	}
}

func connectSays(t *testing.T, s *devstack.Stack) {
	files, err := connect.Files(filepath.Join(stacktest.Root(), "connectors"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		want, got := map[string]string{}, map[string]string{}
		if err := json.Unmarshal(f.Config, &want); err != nil {
			t.Fatal(err)
		}
		if code, err := stacktest.Get(t.Context(), s.ConnectURL()+"/connectors/"+f.Name+"/config", &got); err != nil || code != 200 {
			t.Fatal(code, err)
		}
		same(t, want, got)
	}
}

// scripts/test.sh runs this first: the tests after it find the images in Docker's cache.
func TestImages(t *testing.T) {
	if os.Getenv("TEST_STACK") != "docker" {
		t.Skip("needs TEST_STACK=docker")
	}
	engines, err := dockerstack.New(devstack.Config{Dir: t.TempDir() + "/outboxsaga-images" + fmt.Sprint(os.Getpid()), Root: stacktest.Root()})
	if err != nil {
		t.Fatal(err)
	}
	defer engines.Close()
	for _, name := range []string{devstack.Postgres, devstack.Kafka, devstack.Connect} {
		if image, err := engines.Image(name); err != nil {
			t.Error(image, err)
		}
	}
}

// A test program whose test fails or panics, or that is killed, even with kill -9, leaves no container, network or volume.
func TestNothingIsLeft(t *testing.T) {
	if os.Getenv("TEST_STACK") != "docker" {
		t.Skip("needs TEST_STACK=docker")
	}
	signals := map[string]syscall.Signal{"kill -9": syscall.SIGKILL, "Ctrl-C": syscall.SIGINT, "kill": syscall.SIGTERM}
	for _, how := range []string{"test fails", "test panics", "kill -9", "Ctrl-C", "kill"} {
		t.Run(how, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestChild$", "-test.count=1")
			cmd.Env = append(os.Environ(), child+"="+how)
			tell, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd.Stderr = cmd.Stdout
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			said := bufio.NewReader(out)
			var published string
			for ok := false; !ok; {
				line, err := said.ReadString('\n')
				if err != nil {
					t.Fatal(line, err)
				}
				published, ok = strings.CutPrefix(strings.TrimSpace(line), "port ")
			}
			id, name, _ := strings.Cut(docker(t, "ps", "--no-trunc", "--filter", "publish="+published, "--format", `{{.ID}} {{.Label "`+dockerstack.Label+`"}}`), " ")
			label := "label=" + dockerstack.Label + "=" + name
			if name == "" || docker(t, "network", "ls", "--quiet", "--filter", label) == "" {
				t.Fatalf("nothing runs: %q %q", id, name)
			}
			volumes := strings.Fields(docker(t, "inspect", "--format", `{{range .Mounts}}{{if eq .Type "volume"}}{{.Name}} {{end}}{{end}}`, id))
			if len(volumes) == 0 {
				t.Fatal("the data is in no volume")
			}
			if signal, ok := signals[how]; ok {
				err = cmd.Process.Signal(signal)
			} else {
				_, err = fmt.Fprintln(tell)
			}
			if err != nil {
				t.Fatal(err)
			}
			rest, _ := io.ReadAll(said)
			if err := cmd.Wait(); err == nil || signals[how] == 0 && !strings.Contains(string(rest), "as it was told to") {
				t.Errorf("it ends well? %v: %s", err, rest)
			}
			begin := time.Now()
			for {
				left := docker(t, "ps", "--all", "--quiet", "--filter", label) + docker(t, "network", "ls", "--quiet", "--filter", label)
				if left == "" {
					break
				}
				if time.Since(begin) > 30*time.Second {
					t.Fatalf("30 s after its end there is still: %s", left)
				}
				time.Sleep(100 * time.Millisecond)
			}
			t.Logf("all is gone %.1f s after its end", time.Since(begin).Seconds())
			for _, volume := range volumes {
				if docker(t, "volume", "ls", "--quiet", "--filter", "name="+volume) != "" {
					t.Errorf("the volume %s is left", volume)
				}
			}
		})
	}
}

func docker(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("docker", args...).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}
