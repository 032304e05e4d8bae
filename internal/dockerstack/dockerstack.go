// Package dockerstack runs PostgreSQL, Kafka and Kafka Connect for tests in containers that
// dockertest starts, in place of devstack's processes. What runs in them, and with which files,
// limits and rights, is read from docker-compose.yaml: the tests run what compose runs. Only
// ports, passwords and the speed of start-up differ.
//
// Containers, their volumes and their network are gone after Close, and when the program
// ends in any other way: a watchdog removes them.
package dockerstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"outboxsaga/internal/devstack"
	"outboxsaga/internal/system"

	"github.com/jackc/pgx/v5"
	"github.com/ory/dockertest/v3"
	docker "github.com/ory/dockertest/v3/docker"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Label marks everything that this package makes; its value is the stack's name.
const Label = "outboxsaga.test"

// Engines are the containers of one stack. They implement [devstack.Engines].
type Engines struct {
	name     string
	cfg      devstack.Config
	compose  Compose
	pool     *dockertest.Pool
	network  *dockertest.Network
	watchdog io.Closer
	engine   map[string]*engine
}

type engine struct {
	mu       sync.Mutex
	resource *dockertest.Resource // nil: not made yet
}

// New prepares containers for a stack with this configuration; it makes only their network. The
// folder of the stack names them. The caller closes it.
func New(cfg devstack.Config) (*Engines, error) {
	if _, err := exec.LookPath("docker"); err != nil {
		return nil, errors.New("containers need the command docker, for their logs and to remove them: install Docker, or run the tests on processes: TEST_STACK=native")
	}
	pool, err := dockertest.NewPool("")
	if err != nil {
		return nil, noDaemon(err)
	}
	if err := pool.Client.Ping(); err != nil {
		return nil, noDaemon(err)
	}
	pool.MaxWait = 90 * time.Second
	e := &Engines{name: filepath.Base(cfg.Dir), cfg: cfg, pool: pool, engine: map[string]*engine{}}
	values := map[string]string{
		"POSTGRES_PORT": fmt.Sprint(cfg.PostgresPort), "KAFKA_PORT": fmt.Sprint(cfg.KafkaPort), "CONNECT_PORT": fmt.Sprint(cfg.ConnectPort),
		"POSTGRES_PASSWORD": "test", "SERVICE_PASSWORD": "test", "CDC_PASSWORD": "cdc", "SUPERVISOR_PASSWORD": "test",
	}
	if e.compose, err = ReadCompose(cfg.Root, func(name string) (string, bool) { v, ok := values[name]; return v, ok }); err != nil {
		return nil, err
	}
	for _, name := range []string{devstack.Postgres, devstack.Kafka, devstack.Connect} {
		if _, ok := e.compose.Services[name]; !ok {
			return nil, fmt.Errorf("docker-compose.yaml has no service %s: tests in containers run it", name)
		}
		e.engine[name] = &engine{}
	}
	if e.watchdog, err = watch(e.name); err != nil {
		return nil, err
	}
	e.network, err = pool.CreateNetwork(e.name, func(o *docker.CreateNetworkOptions) { o.Labels = map[string]string{Label: e.name} })
	if err != nil {
		return nil, errors.Join(fmt.Errorf("docker network: %w", err), e.watchdog.Close())
	}
	return e, nil
}

func noDaemon(err error) error {
	where := os.Getenv("DOCKER_HOST")
	if where == "" {
		where = "its usual place"
	}
	return fmt.Errorf("no Docker daemon answers at %s: start one, or say where it is with DOCKER_HOST, or run the tests on processes: TEST_STACK=native: %w", where, err)
}

// Up makes or starts an engine that does not run, and returns when it answers. Connect makes Kafka first.
func (e *Engines) Up(ctx context.Context, name string) error {
	if name == devstack.Connect { // a worker that cannot resolve its broker's name ends
		if err := e.run(devstack.Kafka); err != nil {
			return err
		}
	}
	if err := e.run(name); err != nil {
		return err
	}
	var ended error
	err := e.pool.Retry(func() error {
		if ended = ctx.Err(); ended != nil {
			return nil // no more tries
		}
		if _, running := e.PID(name); !running {
			if name != devstack.Connect || !devstack.NoBroker(e.log(ctx, name)) {
				ended = errors.New("its container has ended")
				return nil
			}
			// A worker gives up on a broker after 5 s. The compose file's policy starts it again, and so do we.
			if ended = e.run(name); ended != nil {
				return nil
			}
		}
		try, stop := context.WithTimeout(ctx, 2*time.Second)
		defer stop()
		return e.ask(try, name)
	})
	if err = errors.Join(err, ended); err != nil {
		return fmt.Errorf("%s is not ready: %w; its log ends:\n%s", name, err, e.log(context.WithoutCancel(ctx), name))
	}
	return nil
}

// log is the end of what a container has printed.
func (e *Engines) log(ctx context.Context, name string) []byte {
	text, _ := exec.CommandContext(ctx, "docker", "logs", "--tail", "25", e.container(name)).CombinedOutput()
	return text
}

// ask is nil when an engine can work.
func (e *Engines) ask(ctx context.Context, name string) error {
	switch name {
	case devstack.Postgres:
		conn, err := pgx.Connect(ctx, fmt.Sprintf("postgres://postgres@127.0.0.1:%d/postgres?sslmode=disable", e.cfg.PostgresPort))
		if err != nil {
			return err
		}
		return conn.Close(ctx)
	case devstack.Kafka:
		client, err := kgo.NewClient(kgo.SeedBrokers(fmt.Sprintf("127.0.0.1:%d", e.cfg.KafkaPort)))
		if err != nil {
			return err
		}
		defer client.Close()
		return client.Ping(ctx)
	default:
		return system.Ask(ctx, fmt.Sprintf("http://127.0.0.1:%d/connectors", e.cfg.ConnectPort))
	}
}

// container is the name of an engine's container.
func (e *Engines) container(name string) string { return e.name + "-" + name }

// run makes the container where there is none, and starts it where it does not run.
func (e *Engines) run(name string) error {
	one := e.engine[name]
	if one == nil {
		return fmt.Errorf("there is no container for %s: tests in containers have one broker and one worker", name)
	}
	one.mu.Lock()
	defer one.mu.Unlock()
	if one.resource == nil {
		id, err := e.create(name)
		if err != nil {
			return fmt.Errorf("container of %s: %w", name, err)
		}
		found, ok := e.pool.ContainerByName("^/" + e.container(name) + "$")
		if !ok {
			return fmt.Errorf("container of %s: %s was made and is gone", name, id)
		}
		one.resource = found
	}
	now, err := e.pool.Client.InspectContainer(one.resource.Container.ID)
	if err != nil {
		return fmt.Errorf("container of %s: %w", name, err)
	}
	if now.State.Running {
		return nil
	}
	begin := time.Now()
	if err := e.pool.Client.StartContainer(now.ID, nil); err != nil {
		return fmt.Errorf("start the container of %s: %w", name, err)
	}
	return e.follow(name, begin)
}

// create makes the container that the compose file describes. dockertest's own RunWithOptions would
// publish every port of the image to the world, and knows no names in a network.
func (e *Engines) create(name string) (id string, err error) {
	s := e.compose.Services[name]
	image, err := e.Image(name)
	if err != nil {
		return "", err
	}
	config := docker.Config{
		Image: image, Cmd: s.Command, Entrypoint: s.Entrypoint, User: s.User, Hostname: name,
		Labels: map[string]string{Label: e.name}, Volumes: map[string]struct{}{}, ExposedPorts: map[docker.Port]struct{}{},
		Healthcheck: &docker.HealthConfig{Test: []string{"NONE"}}, // nobody looks at it, and it costs CPU every 3 s
	}
	host := docker.HostConfig{
		ReadonlyRootfs: s.ReadOnly, CapDrop: s.CapDrop, CapAdd: s.CapAdd, SecurityOpt: s.SecurityOpt,
		Tmpfs: map[string]string{}, PortBindings: map[docker.Port][]docker.PortBinding{}, NetworkMode: e.name,
	}
	for key, value := range s.Environment {
		config.Env = append(config.Env, key+"="+value)
	}
	switch name {
	case devstack.Postgres:
		config.Env = append(config.Env, "POSTGRES_HOST_AUTH_METHOD=trust") // as the native stack, on loopback
		for _, setting := range e.cfg.PostgresSettings {
			config.Cmd = append(config.Cmd, "-c", setting)
		}
	default:
		if e.cfg.Fast {
			config.Env = append(config.Env, "KAFKA_JVM_PERFORMANCE_OPTS=-XX:+UseSerialGC -XX:TieredStopAtLevel=1")
		}
	}
	for _, volume := range s.Volumes {
		from, to, _ := strings.Cut(volume, ":")
		if strings.HasPrefix(from, ".") {
			host.Binds = append(host.Binds, filepath.Join(e.cfg.Root, from)+":"+to)
		} else { // data: a volume without a name goes with its container
			config.Volumes[to] = struct{}{}
		}
	}
	for _, mount := range s.Tmpfs {
		path, options, _ := strings.Cut(mount, ":")
		host.Tmpfs[path] = options
	}
	for _, published := range s.Ports {
		address, outside, inside, err := port(published)
		if err != nil {
			return "", err
		}
		p := docker.Port(inside + "/tcp")
		config.ExposedPorts[p] = struct{}{}
		host.PortBindings[p] = []docker.PortBinding{{HostIP: address, HostPort: outside}}
	}
	if host.Memory, err = bytes(s.MemLimit); err != nil {
		return "", err
	}
	if host.ShmSize, err = bytes(s.ShmSize); err != nil {
		return "", err
	}
	made, err := e.pool.Client.CreateContainer(docker.CreateContainerOptions{
		Name: e.container(name), Config: &config, HostConfig: &host,
		NetworkingConfig: &docker.NetworkingConfig{EndpointsConfig: map[string]*docker.EndpointConfig{
			e.network.Network.ID: {NetworkID: e.network.Network.ID, Aliases: []string{name}},
		}},
	})
	if err != nil {
		return "", err
	}
	return made.ID, nil
}

// Image builds or pulls the image of an engine and returns its name. [Engines.Up] does so too, but tests have
// deadlines, and the first build takes minutes.
func (e *Engines) Image(name string) (string, error) {
	s := e.compose.Services[name]
	if s.Build == nil {
		return s.Image, e.pull(s.Image)
	}
	image := "outbox-saga/" + name + ":test"
	return image, e.build(image, *s.Build)
}

// build builds an image from the checkout; what did not change comes from Docker's cache.
func (e *Engines) build(image string, b Build) error {
	var out strings.Builder
	var args []docker.BuildArg
	for key, value := range b.Args {
		args = append(args, docker.BuildArg{Name: key, Value: value})
	}
	err := e.pool.Client.BuildImage(docker.BuildImageOptions{
		Name: image, ContextDir: filepath.Join(e.cfg.Root, b.Context), Dockerfile: b.Dockerfile, BuildArgs: args,
		Version: "1", RmTmpContainer: true, OutputStream: &out,
	})
	if err != nil {
		text := strings.TrimSpace(out.String())
		return fmt.Errorf("build image %s: %w; the end of the build:\n%s", image, err, text[max(0, len(text)-2000):])
	}
	return nil
}

func (e *Engines) pull(image string) error {
	if _, err := e.pool.Client.InspectImage(image); err == nil {
		return nil
	}
	repository, tag, _ := strings.Cut(image, ":")
	if err := e.pool.Client.PullImage(docker.PullImageOptions{Repository: repository, Tag: tag}, docker.AuthConfiguration{}); err != nil {
		return fmt.Errorf("pull image %s: %w", image, err)
	}
	return nil
}

// follow copies what a container prints to the log where devstack's processes have theirs.
func (e *Engines) follow(name string, since time.Time) error {
	log, err := os.OpenFile(filepath.Join(e.cfg.Dir, "logs", name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command("docker", "logs", "--follow", "--since", since.Format(time.RFC3339Nano), e.container(name))
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("docker logs: %w", err)
	}
	go func() { _ = cmd.Wait() }() // it ends with the container
	return nil
}

// PID is the process that a running container began with, as the daemon's machine sees it.
func (e *Engines) PID(name string) (pid int, running bool) {
	now, err := e.pool.Client.InspectContainer(e.container(name))
	if err != nil || !now.State.Running {
		return 0, false
	}
	return now.State.Pid, true
}

// Signal sends a signal to the first process of a running container. After SIGKILL the container
// has ended when it returns.
func (e *Engines) Signal(name string, signal syscall.Signal) error {
	if _, running := e.PID(name); !running {
		return fmt.Errorf("%s does not run", name)
	}
	id := e.container(name)
	if err := e.pool.Client.KillContainer(docker.KillContainerOptions{ID: id, Signal: docker.Signal(signal)}); err != nil {
		return fmt.Errorf("signal %s: %w", name, err)
	}
	if signal == syscall.SIGKILL {
		if _, err := e.pool.Client.WaitContainer(id); err != nil {
			return fmt.Errorf("signal %s: %w", name, err)
		}
	}
	return nil
}

// Stop ends an engine: first gently, after 10 s by force. One that does not run is fine.
func (e *Engines) Stop(ctx context.Context, name string) error {
	if _, running := e.PID(name); !running {
		return nil
	}
	id := e.container(name)
	var stopped *docker.ContainerNotRunning
	if err := e.pool.Client.StopContainerWithContext(id, 10, ctx); err != nil && !errors.As(err, &stopped) {
		return fmt.Errorf("stop %s: %w", name, err)
	}
	return nil
}

// Close removes the containers, their volumes and their network.
func (e *Engines) Close() error {
	var errs []error
	for name, one := range e.engine {
		one.mu.Lock()
		if one.resource != nil {
			if err := e.pool.Purge(one.resource); err != nil {
				errs = append(errs, fmt.Errorf("remove the container of %s: %w", name, err))
			}
		}
		one.mu.Unlock()
	}
	if err := e.pool.RemoveNetwork(e.network); err != nil {
		errs = append(errs, fmt.Errorf("remove the docker network: %w", err))
	}
	return errors.Join(append(errs, e.watchdog.Close())...)
}

// watchdog removes what carries the label of stack $1 when its standard input closes. A container
// that was being made just then appears a moment later.
var watchdog = strings.ReplaceAll(`cat >/dev/null
docker network inspect "$1" || exit 0
for i in 1 2 3; do
  ids=$(docker ps --all --quiet --filter "label=LABEL=$1")
  [ -z "$ids" ] || docker rm --force --volumes $ids
  sleep 1
done
docker network rm "$1"
`, "LABEL", Label)

// watch starts the watchdog: it acts at Close, and when this process dies in whatever way.
func watch(name string) (io.Closer, error) {
	cmd := exec.Command("/bin/sh", "-c", watchdog, "watchdog", name)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("watchdog: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("watchdog: %w", err)
	}
	return closer(func() error { return errors.Join(in.Close(), cmd.Wait()) }), nil
}

type closer func() error

func (c closer) Close() error { return c() }
