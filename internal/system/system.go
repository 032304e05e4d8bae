// Package system knows what the whole system consists of: which databases with which
// migrations, which topics, which services on which ports. The operator's command,
// the tests and the benchmarks start it from here, so that all run the same.
package system

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"outboxsaga/events"
	"outboxsaga/inbox"
	"outboxsaga/internal/connect"
	"outboxsaga/internal/devstack"
	"outboxsaga/internal/provision"
	"outboxsaga/internal/scheduling"
	"outboxsaga/internal/service"
	"outboxsaga/internal/supervisor"
	ordermigrations "outboxsaga/order-service/migrations"
	"outboxsaga/outbox"
	paymentmigrations "outboxsaga/payment-service/migrations"
	stockmigrations "outboxsaga/stock-service/migrations"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"
)

// Service is one of the three services.
type Service struct {
	Name         string // its folder, binary, consumer group, process
	Database     provision.Database
	PortVariable string
	DefaultPort  int
	Topics       []string // that its database writes
	Variables    []string // of its environment, beside those of every service
}

// Services are the three services, order-service first.
func Services() []Service {
	return []Service{
		{"order-service", withSupervisor(database("orderdb", "order_service", provision.Migrations{FS: ordermigrations.FS})), "ORDER_PORT", 8080, events.OrderTopics(), []string{"ORDER_TIMEOUT"}},
		{"stock-service", database("stockdb", "stock_service", provision.Migrations{FS: stockmigrations.FS}), "STOCK_PORT", 8081, events.StockTopics(), nil},
		{"payment-service", database("paymentdb", "payment_service", provision.Migrations{FS: paymentmigrations.FS}), "PAYMENT_PORT", 8082, events.PaymentTopics(), nil},
	}
}

func database(name, role string, own provision.Migrations) provision.Database {
	own.Path, own.Table = ".", service.SchemaTable
	return provision.Database{Name: name, Role: role, Migrations: append(SharedMigrations(), own)}
}

// withSupervisor adds the table in which the supervisor keeps its acts.
func withSupervisor(d provision.Database) provision.Database {
	d.Migrations = append(d.Migrations, provision.Migrations{FS: supervisor.Migrations, Path: "migrations", Table: supervisor.MigrationsTable})
	return d
}

// SharedMigrations are those of the libraries and of what all services share. They run
// before a service's own.
func SharedMigrations() []provision.Migrations {
	return []provision.Migrations{
		{FS: outbox.Migrations, Path: "migrations", Table: outbox.MigrationsTable},
		{FS: inbox.Migrations, Path: "migrations", Table: inbox.MigrationsTable},
		{FS: service.Migrations, Path: "migrations", Table: service.MigrationsTable},
	}
}

// Databases are those of the services.
func Databases() []provision.Database {
	var all []provision.Database
	for _, s := range Services() {
		all = append(all, s.Database)
	}
	return all
}

// Topics are all that must exist: the saga's and the connectors' heartbeats.
func Topics() []provision.Topic {
	var all []provision.Topic
	for _, name := range events.Topics() {
		all = append(all, provision.Topic{Name: name, Partitions: events.Partitions})
	}
	for _, d := range Databases() {
		all = append(all, provision.HeartbeatTopic(d.Name))
	}
	return all
}

// Provision brings databases and topics to the state the services and connectors need.
// password gives that of each login; nil: none is set (the local stack trusts loopback).
// only names databases, where each service has a PostgreSQL of its own; none: all of them.
func Provision(ctx context.Context, superuser string, password func(role string) string, brokers []string, replicas int16, only ...string) error {
	if password == nil {
		password = func(string) string { return "" }
	}
	var databases []provision.Database
	for _, d := range Databases() {
		if len(only) == 0 || slices.Contains(only, d.Name) {
			d.Password = password(d.Role)
			databases = append(databases, d)
		}
	}
	if len(databases) < len(only) {
		return fmt.Errorf("there are not all of the databases %s: they are called orderdb, stockdb and paymentdb", strings.Join(only, ", "))
	}
	var both errgroup.Group
	both.Go(func() error { return provision.Postgres(ctx, superuser, password, databases) })
	both.Go(func() error { return provision.Topics(ctx, brokers, replicas, Topics()...) })
	return both.Wait()
}

// Register registers the checkout's connectors and waits until each streams, for two minutes at most.
func Register(ctx context.Context, stack *devstack.Stack) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	files, err := connect.Files(filepath.Join(stack.Root(), "connectors"))
	if err != nil {
		return err
	}
	client := connect.Client{URL: stack.ConnectURL()}
	return connect.ForAll(files, func(f connect.File) error {
		return client.Register(ctx, f, stack.PostgresURL(f.Name), provision.Database{Name: f.Name}.Slot())
	})
}

// Build compiles the services (and the commands) of the checkout into dir, with go
// build's extra flags.
func Build(ctx context.Context, root, dir string, out io.Writer, flags ...string) error {
	args := append([]string{"build", "-trimpath", "-o", dir + string(filepath.Separator)}, flags...)
	for _, s := range Services() {
		args = append(args, "./"+s.Name)
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = root, out, out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build the services: %w", err)
	}
	return nil
}

// provisionTimeout bounds what waits for others, as a migration does for a transaction that was left open.
const provisionTimeout = 2 * time.Minute

// Run provisions and starts a whole system on a stack: engines, services, connectors;
// what runs already is kept. ports are those of each service's instances. It returns when
// all services are ready and, with connectors, all connectors stream. The processes of the
// services are returned also on an error.
func Run(ctx context.Context, stack *devstack.Stack, bin string, ports map[string][]int, connectors bool, env ...string) ([]devstack.Process, error) {
	if err := stack.Resolve(ctx); err != nil {
		return nil, err
	}
	var processes []devstack.Process
	all, group := errgroup.WithContext(ctx)
	// The worker takes longest to start, and needs the rest only for its connectors.
	all.Go(func() error { return stack.UpOnly(group, stack.WorkerNames()...) })
	all.Go(func() error {
		if err := stack.UpOnly(group, append(stack.BrokerNames(), devstack.Postgres)...); err != nil {
			return err
		}
		begin := time.Now()
		limited, cancel := context.WithTimeout(group, provisionTimeout)
		defer cancel()
		if err := Provision(limited, stack.PostgresURL("postgres"), nil, stack.Brokers(), provision.DefaultReplicas); err != nil {
			if limited.Err() != nil && group.Err() == nil {
				err = fmt.Errorf("schema and topics are not ready after %s, start it again if nothing hinders: %w", provisionTimeout, err)
			}
			return err
		}
		stack.Say("  %-18s ready after %.1f s", "schema, topics", time.Since(begin).Seconds())
		for _, svc := range Services() {
			for i, port := range ports[svc.Name] {
				p := svc.Process(stack, bin, i+1, port, env...)
				if err := stack.Launch(p); err != nil {
					return err
				}
				processes = append(processes, p)
				all.Go(func() error { return stack.Await(group, p) })
			}
		}
		return nil
	})
	if err := all.Wait(); err != nil || !connectors {
		return processes, err
	}
	return processes, Register(ctx, stack)
}

// Pipelines are what a supervisor looks after: one a database. pools are by database name, files are those of
// the connectors.
func Pipelines(pools map[string]*pgxpool.Pool, files []connect.File) ([]supervisor.Pipeline, error) {
	var all []supervisor.Pipeline
	for _, s := range Services() {
		i := slices.IndexFunc(files, func(f connect.File) bool { return f.Name == s.Database.Name })
		if i < 0 {
			return nil, fmt.Errorf("there is no connector %s.json: give the folder of the project's connectors", s.Database.Name)
		}
		all = append(all, supervisor.Pipeline{
			Topics: s.Topics,
			Name:   s.Database.Name, Slot: s.Database.Slot(), Group: s.Name, DB: pools[s.Database.Name], Connector: files[i],
		})
	}
	return all, nil
}

// Consumer is the database whose inbox takes the events of a topic; empty: none does.
func Consumer(topic string) string {
	if participant := events.Consumer(topic); participant != "" {
		return participant + "db"
	}
	return ""
}

// FreePorts finds ports for a number of instances of each service.
func FreePorts(instances int) (map[string][]int, error) {
	free, err := devstack.FreePorts(instances * len(Services()))
	if err != nil {
		return nil, err
	}
	ports := map[string][]int{}
	for i, svc := range Services() {
		ports[svc.Name] = free[i*instances : (i+1)*instances]
	}
	return ports, nil
}

// Process says how a stack runs an instance of the service. The first instance has the service's
// name, others NAME-2 and so on. env is added to its environment.
func (s Service) Process(stack *devstack.Stack, bin string, instance, port int, env ...string) devstack.Process {
	addr := "127.0.0.1:" + strconv.Itoa(port)
	program := filepath.Join(bin, s.Name)
	return devstack.Process{
		Name: devstack.Instance(s.Name, instance), Args: []string{program}, Port: port, PortVariable: devstack.PortVariable(s.PortVariable, instance),
		Variables: slices.Concat(service.Variables(), s.Variables, scheduling.GoVariables()), Schedule: scheduling.ForGo,
		Env: append([]string{
			"DATABASE_URL=" + stack.UserURL(s.Database.Role, s.Database.Name),
			"KAFKA_BROKERS=" + strings.Join(stack.Brokers(), ","), "HTTP_ADDR=" + addr,
		}, env...),
		Ready:   func(ctx context.Context) error { return Ask(ctx, "http://"+addr+"/readyz") },
		Timeout: 30 * time.Second,
	}
}

// SupervisorName is the process of outboxctl supervise.
const SupervisorName = "supervisor"

// Supervisor says how a stack runs the supervisor, which is program (outboxctl). It is ready once it
// has looked at the system.
func Supervisor(stack *devstack.Stack, program string, port int, env ...string) devstack.Process {
	addr := "127.0.0.1:" + strconv.Itoa(port)
	return devstack.Process{
		Name: SupervisorName, Port: port, PortVariable: "SUPERVISOR_PORT", Schedule: scheduling.ForGo,
		Args: []string{program, "supervise", "--addr", addr, "--connectors", filepath.Join(stack.Root(), "connectors")},
		Env: append([]string{
			"ADMIN_DATABASE_URL=" + stack.UserURL(provision.Supervisor, ""), "ORDER_DATABASE_URL=", "STOCK_DATABASE_URL=", "PAYMENT_DATABASE_URL=",
			"KAFKA_BROKERS=" + strings.Join(stack.Brokers(), ","), "CONNECT_URL=" + strings.Join(stack.ConnectURLs(), ","),
		}, env...),
		Ready:   func(ctx context.Context) error { return Ask(ctx, "http://"+addr+"/readyz") },
		Timeout: 30 * time.Second,
	}
}

// Ask is nil when url answers 200.
func Ask(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(res.Body, 1000))
		return fmt.Errorf("%s answers %s: %s", url, res.Status, text)
	}
	return nil
}

// Root finds the checkout: the folder with go.mod above the working folder.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "debezium", "pom.xml")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("this is no checkout of the project: run it from the folder with docker-compose.yaml")
		}
		dir = filepath.Dir(dir)
	}
}
