package devstack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"outboxsaga/internal/scheduling"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// postgres prepares the data folder and says how to run it.
func (s *Stack) postgres(ctx context.Context, kit Kit) (Process, error) {
	data := s.postgresDir()
	p := Process{
		Name: Postgres, Port: s.cfg.PostgresPort, PortVariable: portVariables[Postgres],
		Args: []string{
			filepath.Join(kit.postgres(), "bin", "postgres"), "-D", data,
			"-c", fmt.Sprint("port=", s.cfg.PostgresPort), "-c", "unix_socket_directories=",
		},
		Ready: func(ctx context.Context) error {
			conn, err := pgx.Connect(ctx, s.PostgresURL("postgres"))
			if err != nil {
				return err
			}
			return conn.Close(ctx)
		},
		Again: stillEnding,
	}
	for _, setting := range s.cfg.PostgresSettings {
		p.Args = append(p.Args, "-c", setting)
	}
	var err error
	if p.user, err = postgresUser(); err != nil {
		return p, err
	}
	if _, running := s.running(Postgres); running {
		return p, nil
	}
	if err := CheckPort(p); err != nil {
		return p, err
	}
	if p.user != nil && !reachable(filepath.Join(kit.dir, "postgres")) {
		return p, fmt.Errorf("PostgreSQL runs as the user %s, who cannot enter %s: choose another folder with STACK_CACHE", p.user.name, kit.dir)
	}
	if _, err := os.Stat(filepath.Join(s.cfg.Dir, "postgres")); errors.Is(err, fs.ErrNotExist) {
		if err := s.newPostgres(ctx, kit, data, p.user); err != nil {
			return p, err
		}
	}
	conf, err := os.ReadFile(filepath.Join(s.cfg.Root, "debezium", "postgresql.conf"))
	if err != nil {
		return p, fmt.Errorf("the checkout is not complete: %w", err)
	}
	return p, os.WriteFile(filepath.Join(data, "postgresql.conf"), conf, 0o644)
}

// newPostgres makes the data folder, whole or not at all. What lies there without a name in
// the stack's folder belongs to a stack whose folder was removed.
func (s *Stack) newPostgres(ctx context.Context, kit Kit, data string, u *user) error {
	half, inside := data+".new", filepath.Join(s.cfg.Dir, "postgres")
	for _, dir := range []string{half, data, inside} {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Dir(half), 0o755); err != nil {
		return fmt.Errorf("a folder for the data of PostgreSQL: %w", err)
	}
	err := s.fresh(ctx, kit, Postgres, half, func() error { return initdb(ctx, kit, half, u) })
	if err != nil {
		return err
	}
	if err := os.Rename(half, data); err != nil || data == inside {
		return err
	}
	s.Say("  the data of PostgreSQL is in %s: its user %s cannot enter %s", data, u.name, s.cfg.Dir)
	return os.Symlink(data, inside)
}

func initdb(ctx context.Context, kit Kit, dir string, u *user) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("a folder for the data of PostgreSQL: %w", err)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(kit.postgres(), "bin", "initdb"), "-D", dir, "-U", "postgres",
		"--auth=trust", "--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", "--no-sync", "--no-instructions")
	cmd.Dir = "/"
	if u != nil {
		if err := os.Lchown(dir, u.uid, u.gid); err != nil {
			return err
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: u.credential()}
	}
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, bytes.TrimSpace(text))
	}
	return nil
}

// fresh has create make a folder, or copies the one that another stack has made.
func (s *Stack) fresh(ctx context.Context, kit Kit, name, dir string, create func() error) error {
	if s.cfg.Templates == "" {
		return create()
	}
	template := filepath.Join(s.cfg.Templates, filepath.Base(kit.dir), name) // of these versions
	if err := os.MkdirAll(filepath.Dir(template), 0o755); err != nil {
		return err
	}
	unlock, err := LockFile(ctx, template+".lock", func() {})
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Stat(template); err == nil {
		return clone(ctx, template, dir)
	}
	if err := create(); err != nil {
		return err
	}
	half := template + ".half"
	if err := errors.Join(os.RemoveAll(half), clone(ctx, dir, half)); err != nil {
		return err
	}
	return os.Rename(half, template)
}

// clone copies a folder with owners and rights.
func clone(ctx context.Context, from, to string) error {
	if text, err := exec.CommandContext(ctx, "cp", "-a", from, to).CombinedOutput(); err != nil {
		return fmt.Errorf("cp -a: %w: %s", err, bytes.TrimSpace(text))
	}
	return nil
}

// stillEnding tells whether PostgreSQL has written to its log that it does not start because of processes of
// a server that was killed: they end soon, but not at once. What they write while they end may stand after it.
func stillEnding(log []byte) bool {
	return bytes.Contains(log, []byte(`"postmaster.pid" already exists`)) || bytes.Contains(log, []byte("pre-existing shared memory block"))
}

// NoBroker tells whether a worker has written to its log that it ends because no broker answered while it
// started, for no longer than its default.api.timeout.ms, or did not make its topics in time.
func NoBroker(log []byte) bool {
	return bytes.Contains(log, []byte("connect to and describe Kafka cluster")) || bytes.Contains(log, []byte("Timeout expired while trying to create topic"))
}

// jvm is the start of a Java command line. The folder in it marks the process as ours.
func (s *Stack) jvm(kit Kit, name, heap string) []string {
	args := []string{kit.java.Path, "-Dstack=" + s.cfg.Dir + "/" + name, heap, "-Djava.io.tmpdir=" + s.temp(name),
		"-Dlog4j2.configurationFile=" + filepath.Join(s.cfg.Root, "debezium", "log4j2.properties"),
		"-Djava.net.preferIPv4Stack=true", "@" + filepath.Join(s.cfg.Root, "debezium", "jvm.options")}
	if s.cfg.Fast {
		args = append(args, "-XX:-UseParallelGC", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
	}
	return append(append(args, s.sharing(kit, name)...), "-cp", kit.libs())
}

// temp is the folder for the temporary files of a JVM: its native libraries.
func (s *Stack) temp(name string) string { return filepath.Join(s.cfg.Dir, "."+name+"-tmp") }

// kafka formats the storage where it is new and says how to run the i-th broker.
func (s *Stack) kafka(ctx context.Context, kit Kit, i int) (Process, error) {
	name := Instance(Kafka, i)
	dir := filepath.Join(s.cfg.Dir, name)
	conf := filepath.Join(s.cfg.Dir, Instance("broker", i)+".properties")
	listener, control := hostPort(s.cfg.port(Kafka, i)), hostPort(s.cfg.port(controller, i))
	p := Process{
		Name: name, Port: s.cfg.port(Kafka, i), PortVariable: PortVariable(portVariables[Kafka], i),
		Args:  append(s.jvm(kit, name, "-Xmx384m"), "kafka.Kafka", conf),
		Ready: func(ctx context.Context) error { return askKafka(ctx, listener, int32(i)) },
		Temp:  s.temp(name),
	}
	if _, running := s.running(name); running {
		return p, nil
	}
	voter := Process{Name: "the controller of " + name, Port: s.cfg.port(controller, i), PortVariable: PortVariable(portVariables[controller], i)}
	if err := errors.Join(CheckPort(p), CheckPort(voter)); err != nil {
		return p, err
	}
	settings := append(s.cfg.Detours.settings(name, listener, control), fmt.Sprint("node.id=", i), "log.dirs="+dir)
	if err := s.properties("broker.properties", conf, append(settings, s.quorum()...)...); err != nil {
		return p, err
	}
	return p, s.format(ctx, kit, name, conf, dir)
}

// quorum is what the brokers of a cluster are told of each other, and what differs from one alone. The
// voters are named in the file: those that Kafka would keep in its data could not move to other ports.
func (s *Stack) quorum() []string {
	if s.cfg.Brokers == 1 {
		return []string{"controller.quorum.bootstrap.servers=" + hostPort(s.cfg.ControllerPort)}
	}
	var voters []string
	for i := 1; i <= s.cfg.Brokers; i++ {
		voters = append(voters, fmt.Sprintf("%d@%s", i, hostPort(s.cfg.port(controller, i))))
	}
	copies, inSync := fmt.Sprint(s.ReplicationFactor()), fmt.Sprint(s.ReplicationFactor()-1)
	return []string{
		"controller.quorum.voters=" + strings.Join(voters, ","),
		"default.replication.factor=" + copies,
		"min.insync.replicas=" + inSync,
		"offsets.topic.replication.factor=" + copies,
		"transaction.state.log.replication.factor=" + copies,
		"transaction.state.log.min.isr=" + inSync,
		"share.coordinator.state.topic.replication.factor=" + copies,
		"share.coordinator.state.topic.min.isr=" + inSync,
	}
}

// format prepares the storage of a broker where that is new, whole or not at all.
func (s *Stack) format(ctx context.Context, kit Kit, name, conf, dir string) error {
	begun := filepath.Join(s.cfg.Dir, "."+name+"-unformatted")
	_, interrupted := os.Stat(begun)
	if _, err := os.Stat(dir); err == nil && interrupted != nil {
		return nil
	}
	if err := errors.Join(os.WriteFile(begun, nil, 0o644), os.RemoveAll(dir)); err != nil {
		return err
	}
	args := append(s.jvm(kit, "format", "-Xmx128m"), "-XX:TieredStopAtLevel=1",
		"kafka.tools.StorageTool", "format", "-t", "b3V0Ym94LXNhZ2Etc3RhYw", "-c", conf)
	if s.cfg.Brokers == 1 {
		args = append(args, "--standalone")
	}
	err := s.fresh(ctx, kit, fmt.Sprint(name, "-of-", s.cfg.Brokers), dir, func() error {
		if text, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("format the storage of %s: %w: %s", name, err, bytes.TrimSpace(text))
		}
		return nil
	})
	if err != nil {
		return err
	}
	return os.Remove(begun)
}

// askKafka is nil when the broker serves: the cluster counts it among its members, and what it has
// copies of, it has caught up with. A broker that is ready can so bear the loss of another one.
func askKafka(ctx context.Context, address string, node int32) error {
	// A closed port is an answer too, and a cheaper one than a client.
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	conn.Close()
	client, err := kgo.NewClient(kgo.SeedBrokers(address))
	if err != nil {
		return err
	}
	defer client.Close()
	cluster, err := kadm.NewClient(client).Metadata(ctx)
	if err != nil {
		return err
	}
	if !slices.Contains(cluster.Brokers.NodeIDs(), node) {
		return errors.New("it is not yet a member of its cluster")
	}
	for _, t := range cluster.Topics {
		for _, p := range t.Partitions {
			if slices.Contains(p.Replicas, node) && !slices.Contains(p.ISR, node) {
				return fmt.Errorf("it has not yet caught up with partition %d of %s", p.Partition, t.Topic)
			}
		}
	}
	return nil
}

// connect says how to run the i-th Connect worker. Hosts and secrets of the connectors
// come from its environment.
func (s *Stack) connect(kit Kit, i int) (Process, error) {
	name, url := Instance(Connect, i), s.ConnectURLs()[i-1]
	conf := filepath.Join(s.cfg.Dir, Instance("worker", i)+".properties")
	schedule, missing, err := scheduling.ForWorker()
	if err != nil {
		return Process{}, err
	}
	if missing != nil {
		s.Say("  %-18s %v", name, missing)
	}
	p := Process{
		Name: name, Port: s.cfg.port(Connect, i), PortVariable: PortVariable(portVariables[Connect], i),
		Args: append(s.jvm(kit, name, "-Xmx512m"), "org.apache.kafka.connect.cli.ConnectDistributed", conf),
		Temp: s.temp(name), Again: NoBroker, Variables: scheduling.WorkerVariables(),
		Schedule: func() (scheduling.Schedule, error) { return schedule, nil },
		Env:      []string{"CDC_HOST=127.0.0.1", fmt.Sprint("CDC_PORT=", s.cdcPort()), "CDC_USER=cdc", "CDC_PASSWORD=cdc"},
		Ready: func(ctx context.Context) error {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/connectors", nil)
			if err != nil {
				return err
			}
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				return err
			}
			res.Body.Close()
			if res.StatusCode != http.StatusOK {
				return fmt.Errorf("it answers %s", res.Status)
			}
			return nil
		},
	}
	for variable, value := range schedule.Env() {
		p.Env = append(p.Env, variable+"="+value)
	}
	if _, running := s.running(name); running {
		return p, nil
	}
	settings := []string{
		"bootstrap.servers=" + s.bootstrap(),
		"listeners=" + url,
		"rest.advertised.host.name=127.0.0.1",
		"plugin.path=" + kit.plugins(),
	}
	if copies := s.ReplicationFactor(); copies > 1 {
		for _, topic := range []string{"config", "offset", "status"} {
			settings = append(settings, fmt.Sprintf("%s.storage.replication.factor=%d", topic, copies))
		}
	}
	return p, s.properties("worker.properties", conf, settings...)
}

// properties copies a file of the folder debezium with more lines at its end.
func (s *Stack) properties(name, to string, more ...string) error {
	text, err := os.ReadFile(filepath.Join(s.cfg.Root, "debezium", name))
	if err != nil {
		return fmt.Errorf("the checkout is not complete: %w", err)
	}
	return os.WriteFile(to, append(text, "\n"+strings.Join(more, "\n")+"\n"...), 0o644)
}
