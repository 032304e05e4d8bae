package devstack

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// A JVM that starts spends most of its time on reading, checking and linking classes, of which a broker and a worker have
// thousands. From an archive that was written before (class-data sharing, JEP 350; Kafka's own images bring one too) they
// come ready, by mmap: both start in about half the time with half the CPU. Debezium's are not in it: a plugin has a class
// loader of its own.

// sharing are the arguments with which a JVM reads its archive, or leaves one. A JVM that finds its archive unfit (other
// classes, another JVM) goes on without.
func (s *Stack) sharing(kit Kit, name string) []string {
	kind, _ := Kind(name)
	if s.cfg.archives != "" {
		if kind != Kafka && kind != Connect {
			return nil
		}
		return []string{"-XX:ArchiveClassesAtExit=" + archiveFile(s.cfg.archives, kind)}
	}
	if kind != Connect {
		kind = Kafka // its tools too
	}
	file := archiveFile(kit.classes, kind)
	if _, err := os.Stat(file); err != nil {
		return nil
	}
	return []string{"-XX:SharedArchiveFile=" + file}
}

func archiveFile(dir, kind string) string { return filepath.Join(dir, kind+".jsa") }

// java finds the JVM and its archives of classes, and makes them the first time. Where that fails, which is tried once for
// a kit and a JVM, there are none: the stack then starts more slowly.
func (s *Stack) java(ctx context.Context, kit *Kit) error {
	var err error
	if kit.java, err = Java(ctx); err != nil || s.cfg.archives != "" {
		return err
	}
	kit.classes = filepath.Join(kit.dir, "classes", fitting(*kit))
	if _, err := os.Stat(kit.classes); err == nil {
		return nil
	}
	unlock, err := LockFile(ctx, kit.dir+".lock", func() { s.Say("another program prepares the JVMs; waiting for it") })
	if err != nil {
		if ctx.Err() == nil { // a cache of another user's
			err = nil
		}
		return err
	}
	defer unlock()
	if _, err := os.Stat(kit.classes); err == nil {
		return nil
	}
	half := kit.classes + ".half"
	if emptied(half) != nil { // the same
		return nil
	}
	s.Say("preparing the JVMs, so that they start in half the time (once)")
	begin := time.Now()
	err = s.archive(ctx, *kit, half)
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("preparing the JVMs was interrupted: %w", ctx.Err())
	case err == nil:
		s.Say("prepared in %.0f s", time.Since(begin).Seconds())
	default:
		s.Say("the JVMs could not be prepared, and start more slowly; to have it tried again, remove %s: %v", kit.classes, err)
		if emptied(half) != nil {
			return nil
		}
	}
	if err := os.Rename(half, kit.classes); err != nil {
		s.Say("what was prepared cannot be kept: %v", err)
	}
	return nil
}

// fitting names what an archive is made for: a JVM does without one of another version, of other classes or of another place.
func fitting(kit Kit) string {
	sum := sha256.New()
	fmt.Fprintln(sum, kit.java.Version, kit.dir)
	files, _ := filepath.Glob(kit.libs()) // the pattern is right
	if java, err := filepath.EvalSymlinks(kit.java.Path); err == nil {
		files = append(files, filepath.Join(filepath.Dir(filepath.Dir(java)), "lib", "modules"))
	}
	for _, file := range files {
		if info, err := os.Stat(file); err == nil {
			fmt.Fprintln(sum, file, info.Size(), info.ModTime().UnixNano())
		}
	}
	return fmt.Sprintf("%x", sum.Sum(nil))[:16]
}

// archive runs a broker and a worker of their own, which leave their archives in dir when they end.
func (s *Stack) archive(ctx context.Context, kit Kit, dir string) error {
	state, err := os.MkdirTemp("", "outboxsaga-classes")
	if err != nil {
		return err
	}
	defer os.RemoveAll(state)
	cfg := Config{Dir: state, Root: s.cfg.Root, Cache: s.cfg.Cache, Fast: true, Ephemeral: true, archives: dir}
	if err := cfg.UseFreePorts(); err != nil {
		return err
	}
	t, err := Open(cfg)
	if err != nil {
		return err
	}
	defer t.Close()
	if err := t.UpOnly(ctx, Kafka, Connect); err != nil {
		return err
	}
	if err := t.Down(ctx, false); err != nil {
		return err
	}
	for _, name := range []string{Connect, Kafka} {
		if err := whole(ctx, kit, archiveFile(dir, name)); err != nil {
			return fmt.Errorf("the archive of %s is not usable: %w; the end of its log says:\n%s", name, err, tail(t.LogFile(name)))
		}
	}
	return nil
}

// whole is nil if an archive is complete, and on the disk: with one that is cut short a JVM does not go on without, it crashes.
func whole(ctx context.Context, kit Kit, file string) error {
	text, err := exec.CommandContext(ctx, kit.java.Path, "-Xshare:on", "-XX:+UnlockDiagnosticVMOptions", "-XX:+VerifySharedSpaces", "-XX:SharedArchiveFile="+file, "-cp", kit.libs(), "-version").CombinedOutput()
	if err != nil {
		return fmt.Errorf("java -Xshare:on: %w: %.300s", err, text)
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
