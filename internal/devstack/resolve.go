package devstack

import (
	"archive/tar"
	"archive/zip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ulikunitz/xz"
)

// Kit is what a stack runs, resolved: Java libraries, the Debezium plugin and a
// PostgreSQL. Where it runs JVMs: with what, and the folder of their archives of classes.
type Kit struct {
	dir     string
	java    JVM
	classes string
}

func (k Kit) libs() string     { return filepath.Join(k.dir, "libs", "*") }
func (k Kit) plugins() string  { return filepath.Join(k.dir, "plugins") }
func (k Kit) postgres() string { return filepath.Join(k.dir, "postgres") }

// resolve returns the kit for root's debezium/pom.xml from cache, and fills the
// cache with Maven first where it must. Several programs may call it at once: one
// resolves, the others wait. An interrupted call leaves nothing half done.
func resolve(ctx context.Context, root, cache string, out io.Writer) (Kit, error) {
	pom := filepath.Join(root, "debezium", "pom.xml")
	text, err := os.ReadFile(pom)
	if err != nil {
		return Kit{}, fmt.Errorf("the checkout is not complete: %w", err)
	}
	platform, err := platform()
	if err != nil {
		return Kit{}, err
	}
	kit := Kit{dir: filepath.Join(cache, fmt.Sprintf("%x", sha256.Sum256(append(text, platform...)))[:16])}
	if _, err := os.Stat(kit.dir); err == nil {
		return kit, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return Kit{}, fmt.Errorf("cannot write the cache: choose another folder with STACK_CACHE: %w", err)
	}
	unlock, err := LockFile(ctx, kit.dir+".lock", func() { fmt.Fprintln(out, "another program resolves the stack; waiting for it") })
	if err != nil {
		return Kit{}, fmt.Errorf("cannot write the cache: choose another folder with STACK_CACHE: %w", err)
	}
	defer unlock()
	if _, err := os.Stat(kit.dir); err == nil {
		return kit, nil // another program has resolved it meanwhile
	}
	if _, err := Java(ctx); err != nil {
		return Kit{}, err
	}
	half := kit.dir + ".half" // what is there already, an interrupted call left
	if err := emptied(half); err != nil {
		return Kit{}, fmt.Errorf("cannot write the cache: choose another folder with STACK_CACHE: %w", err)
	}
	defer os.RemoveAll(half)
	begin := time.Now()
	fmt.Fprintln(out, "resolving Kafka, Connect, Debezium and PostgreSQL with Maven (about 100 MB, once)")
	if err := maven(ctx, pom, half, platform, out); err != nil {
		return Kit{}, err
	}
	if err := unpackPostgres(filepath.Join(half, "postgres")); err != nil {
		return Kit{}, fmt.Errorf("unpack PostgreSQL: %w", err)
	}
	if err := os.Rename(half, kit.dir); err != nil {
		return Kit{}, err
	}
	fmt.Fprintf(out, "resolved in %.0f s into %s\n", time.Since(begin).Seconds(), kit.dir)
	return kit, nil
}

// emptied makes a folder, without what it had.
func emptied(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.MkdirAll(dir, 0o755)
}

// platform is the classifier of the PostgreSQL build for this machine.
func platform() (string, error) {
	arch := map[string]string{"amd64": "amd64", "arm64": "arm64v8"}[runtime.GOARCH]
	if arch == "" || runtime.GOOS != "linux" && runtime.GOOS != "darwin" {
		return "", fmt.Errorf("there is no PostgreSQL build for %s/%s: use Linux or macOS on amd64 or arm64, or docker-compose.yaml", runtime.GOOS, runtime.GOARCH)
	}
	return runtime.GOOS + "-" + arch, nil
}

func maven(ctx context.Context, pom, dir, platform string, out io.Writer) error {
	mvn, err := exec.LookPath("mvn")
	if err != nil {
		return errors.New("mvn (Maven) is not installed, and what it resolves is not in the cache: install it (Debian: apt-get install maven) and try again")
	}
	target := filepath.Join(dir, "target")
	defer os.RemoveAll(target)
	cmd := exec.CommandContext(ctx, mvn, "-B", "-f", pom, "package",
		"-Dstack.dir="+dir, "-Dpostgres.platform="+platform, "-DbuildDirectory="+target)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	log := &mavenLog{}
	cmd.Stdout, cmd.Stderr = log, log
	stop := make(chan struct{})
	defer close(stop)
	go log.progress(out, stop)
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("resolving was interrupted: %w", ctx.Err())
		}
		return fmt.Errorf("mvn could not resolve the stack (is the network there?): %s", mavenError(log.String()))
	}
	return nil
}

// mavenLog is Maven's output, which is shown only where something goes wrong.
type mavenLog struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *mavenLog) Write(text []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(text)
}

func (l *mavenLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// progress prints every few seconds how much has arrived.
func (l *mavenLog) progress(out io.Writer, stop <-chan struct{}) {
	begin := time.Now()
	for {
		select {
		case <-stop:
			return
		case <-time.After(3 * time.Second):
			fmt.Fprintf(out, "  still resolving, %.0f s, %d files fetched\n", time.Since(begin).Seconds(), strings.Count(l.String(), "Downloaded from"))
		}
	}
}

// mavenError is the first error in Maven's output, on one line.
func mavenError(log string) string {
	for line := range strings.Lines(log) {
		if _, text, ok := strings.Cut(line, "[ERROR]"); ok && strings.TrimSpace(text) != "" {
			text, _, _ = strings.Cut(strings.TrimSpace(text), " -> [Help")
			if len(text) > 300 {
				text = text[:300] + "…"
			}
			return text
		}
	}
	return strings.TrimSpace(log)
}

// unpackPostgres turns dir/postgres.jar, which holds one .txz, into dir.
func unpackPostgres(dir string) error {
	jar, err := zip.OpenReader(filepath.Join(dir, "postgres.jar"))
	if err != nil {
		return err
	}
	defer jar.Close()
	for _, f := range jar.File {
		if !strings.HasSuffix(f.Name, ".txz") {
			continue
		}
		packed, err := f.Open()
		if err != nil {
			return err
		}
		defer packed.Close()
		plain, err := xz.NewReader(packed)
		if err != nil {
			return err
		}
		if err := untar(plain, dir); err != nil {
			return err
		}
		return os.Remove(filepath.Join(dir, "postgres.jar"))
	}
	return errors.New("the jar holds no .txz")
}

func untar(r io.Reader, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	archive := tar.NewReader(r)
	for {
		h, err := archive.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		name := filepath.Clean(h.Name)
		switch h.Typeflag {
		case tar.TypeDir:
			err = root.MkdirAll(name, 0o755)
		case tar.TypeSymlink:
			if err = root.MkdirAll(filepath.Dir(name), 0o755); err == nil {
				err = root.Symlink(h.Linkname, name)
			}
		case tar.TypeReg:
			if err = root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
				break
			}
			var f *os.File
			if f, err = root.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, h.FileInfo().Mode().Perm()); err == nil {
				_, err = io.Copy(f, archive)
				err = errors.Join(err, f.Close())
			}
		}
		if err != nil {
			return err
		}
	}
}

// LockFile takes an exclusive lock between programs; the kernel frees it with the program.
// wait is called if another program has it.
func LockFile(ctx context.Context, name string, wait func()) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for said := false; ; {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
		if !said {
			wait()
			said = true
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

var javaVersion = regexp.MustCompile(`version "(?:1\.)?(\d+)`)

// JVM is an installed Java.
type JVM struct {
	Path    string // of the program
	Version string // what it prints with -version
}

// Java finds a Java of version 17 or later: JAVA_HOME's, else the PATH's.
func Java(ctx context.Context) (JVM, error) {
	const advice = "install a JDK 17 or later (Debian: apt-get install openjdk-17-jdk-headless), or set JAVA_HOME to one"
	java := "java"
	if home := os.Getenv("JAVA_HOME"); home != "" {
		java = filepath.Join(home, "bin", "java")
	}
	found, err := exec.LookPath(java)
	if err != nil {
		return JVM{}, fmt.Errorf("there is no Java (%s): %s", java, advice)
	}
	text, err := exec.CommandContext(ctx, found, "-version").CombinedOutput()
	if over := ctx.Err(); over != nil {
		return JVM{}, fmt.Errorf("the start ended while %s -version ran: %w: try again, with more time", found, over)
	}
	if err != nil {
		return JVM{}, fmt.Errorf("%s -version fails (%v): %s", found, err, advice)
	}
	m := javaVersion.FindSubmatch(text)
	if m == nil {
		return JVM{}, fmt.Errorf("%s does not tell its version: %s", found, advice)
	}
	if v, _ := strconv.Atoi(string(m[1])); v < 17 {
		return JVM{}, fmt.Errorf("%s is Java %d, too old for Kafka: %s", found, v, advice)
	}
	return JVM{found, string(text)}, nil
}
