package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"outboxsaga/internal/devstack"
)

// diskSize holds what the log may use (max_wal_size, max_slot_wal_keep_size) with room.
const diskSize = 1 << 30

// smallDisk puts the log of PostgreSQL, which runs and is stopped meanwhile, on a small file system
// of its own in memory. It needs root.
func (w *world) smallDisk(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("only root may mount a small file system for the log of PostgreSQL")
	}
	if err := w.stack.UpOnly(ctx, devstack.Postgres); err != nil {
		return err
	}
	if err := w.stack.Stop(ctx, devstack.Postgres); err != nil {
		return err
	}
	log := filepath.Join(w.cfg.Dir, "postgres", "pg_wal")
	var owner syscall.Stat_t
	if err := syscall.Stat(log, &owner); err != nil {
		return err
	}
	w.disk = filepath.Join(w.cfg.Dir, "wal")
	if err := os.Mkdir(w.disk, 0o755); err != nil {
		return err
	}
	if err := syscall.Mount("tmpfs", w.disk, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0755", diskSize)); err != nil {
		w.disk = ""
		return fmt.Errorf("mount a file system in memory: %w", err)
	}
	// It must not outlive this process, however that ends; a mount in use goes when its users have.
	cmd := exec.Command("/bin/sh", "-c", `cat >/dev/null; umount -l "$1"`, "umount", w.disk)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return errors.Join(err, syscall.Unmount(w.disk, syscall.MNT_DETACH))
	}
	w.unmount = func() error { return errors.Join(in.Close(), cmd.Wait()) }
	moved := filepath.Join(w.disk, "pg_wal")
	if text, err := exec.CommandContext(ctx, "cp", "-a", log, moved).CombinedOutput(); err != nil {
		return fmt.Errorf("move the log of PostgreSQL: %w: %s", err, text)
	}
	return errors.Join(os.Chown(moved, int(owner.Uid), int(owner.Gid)), os.RemoveAll(log), os.Symlink(moved, log))
}

// diskFaults: the log's file system fills up.
func (w *world) diskFaults() ([]kind, error) {
	if w.disk == "" {
		return nil, w.noDisk
	}
	return []kind{{"disk full", 1, func(dice *rand.Rand) fault {
		hold := between(dice, time.Second, 4*time.Second)
		return diskFull{about{"disk full", fmt.Sprintf("the disk of PostgreSQL's log is full for %.1f s", hold.Seconds()), []string{"Postgres", "worker"}, hold, fromHeal}, w}
	}}}, nil
}

// unhealthyAfter is how long PostgreSQL may answer nobody although there is room for its log.
const unhealthyAfter = 15 * time.Second

// diskFull: PostgreSQL ends with PANIC when it cannot write its log, and cannot start before there is room.
type diskFull struct {
	about
	world *world
}

func (f diskFull) ballast() string { return filepath.Join(f.world.disk, "ballast") }

func (f diskFull) inject(ctx context.Context) error {
	var free syscall.Statfs_t
	if err := syscall.Statfs(f.world.disk, &free); err != nil {
		return err
	}
	file, err := os.Create(f.ballast())
	if err != nil {
		return err
	}
	defer file.Close()
	if err := syscall.Fallocate(int(file.Fd()), 0, 0, int64(free.Bavail)*free.Bsize); err != nil && !errors.Is(err, syscall.ENOSPC) {
		return err
	}
	if _, err := io.CopyN(file, zeros{}, diskSize); err == nil {
		return errors.New("the disk is not full")
	}
	// Segments that are there are used up first.
	for range 40 {
		if err := f.world.burst(ctx, 30); err != nil {
			return nil // it has ended
		}
	}
	return errors.New("PostgreSQL goes on without a disk for its log")
}

func (f diskFull) heal(ctx context.Context) error {
	if err := os.Remove(f.ballast()); err != nil {
		return err
	}
	// It may be starting in vain just now, or have given up. Or it stays for ever in a recovery that nobody does any more: so did
	// PostgreSQL 18.4 whose recovery had met the full disk at its end. Who watches its health starts it again.
	for {
		try, cancel := context.WithTimeout(ctx, unhealthyAfter)
		err := f.world.start(try, devstack.Postgres)
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
		_ = f.world.signal(devstack.Postgres, syscall.SIGKILL) // unless it has ended
		pause(ctx, 200*time.Millisecond)
	}
}

// zeros is what the rest of the disk is filled with.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }
