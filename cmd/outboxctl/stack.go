package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"outboxsaga/internal/devstack"
	"outboxsaga/internal/system"

	"github.com/spf13/cobra"
)

func newStackCommand() *cobra.Command {
	c := &cobra.Command{Use: "stack", Short: "The local stack: PostgreSQL, Kafka, Connect and the services, without containers"}
	c.AddCommand(
		&cobra.Command{
			Use: "up", Short: "Start what does not run", Args: cobra.NoArgs,
			Long: `Start what does not run of PostgreSQL, Kafka, Kafka Connect, the three services and the supervisor, in STACK_DIR
(default .stack), and make roles, databases, migrations, slots and topics. The programs are
taken from STACK_DIR/bin. Variables of the environment reach the services. Connectors are registered by
scripts/register-connectors.sh.`,
			RunE: func(cmd *cobra.Command, _ []string) error { return stackUp(cmd.Context(), cmd) },
		},
		newStackDownCommand(),
		&cobra.Command{
			Use: "status", Short: "Show the processes", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error { return stackStatus(cmd) },
		},
		&cobra.Command{
			Use: "resolve", Short: "Fetch what the stack runs, without starting it", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				root, err := system.Root()
				if err != nil {
					return err
				}
				_, err = devstack.Resolve(cmd.Context(), root, "", cmd.OutOrStdout())
				return err
			},
		},
	)
	return c
}

func newStackDownCommand() *cobra.Command {
	var wipe bool
	c := &cobra.Command{
		Use: "down", Short: "Stop all processes", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			stack, err := openStack(cmd)
			if err != nil {
				return err
			}
			unlock, err := stack.Lock(cmd.Context())
			if err != nil {
				return err
			}
			defer unlock()
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
			defer cancel()
			return stack.Down(ctx, wipe)
		},
	}
	c.Flags().BoolVar(&wipe, "wipe", false, "remove all data too")
	return c
}

// port reads a port from the environment.
func port(variable string, byDefault int) (int, error) {
	text := os.Getenv(variable)
	if text == "" {
		return byDefault, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > 65535 {
		return 0, fmt.Errorf("%s=%q is not a port: give a number from 1 to 65535", variable, text)
	}
	return n, nil
}

func openStack(cmd *cobra.Command) (*devstack.Stack, error) {
	root, err := system.Root()
	if err != nil {
		return nil, err
	}
	dir := os.Getenv("STACK_DIR")
	if dir == "" {
		dir = filepath.Join(root, ".stack")
	}
	cfg := devstack.Config{Dir: dir, Root: root, Out: cmd.OutOrStdout()}
	for _, p := range []struct {
		port      *int
		variable  string
		byDefault int
	}{
		{&cfg.PostgresPort, "POSTGRES_PORT", 5432}, {&cfg.KafkaPort, "KAFKA_PORT", 9092},
		{&cfg.ConnectPort, "CONNECT_PORT", 8083},
	} {
		if *p.port, err = port(p.variable, p.byDefault); err != nil {
			return nil, err
		}
	}
	if cfg.ControllerPort, err = port("KAFKA_CONTROLLER_PORT", cfg.KafkaPort+1); err != nil {
		return nil, err
	}
	return devstack.Open(cfg)
}

func stackUp(ctx context.Context, cmd *cobra.Command) (err error) {
	stack, err := openStack(cmd)
	if err != nil {
		return err
	}
	unlock, err := stack.Lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	ports := map[string]int{}
	used := map[int]string{}
	for _, s := range system.Services() {
		if ports[s.Name], err = port(s.PortVariable, s.DefaultPort); err != nil {
			return err
		}
		if other := used[ports[s.Name]]; other != "" {
			return fmt.Errorf("%s and %s are both %d: choose different ports", other, s.PortVariable, ports[s.Name])
		}
		used[ports[s.Name]] = s.PortVariable
		// Said before anything is started, so that a taken port costs no time.
		if _, running := stack.PID(s.Name); !running && taken(ports[s.Name]) {
			return fmt.Errorf("port %d, for %s, is taken by another program: stop that, or choose another port with %s", ports[s.Name], s.Name, s.PortVariable)
		}
	}
	defer func() {
		if err != nil {
			stack.Abort()
		}
	}()
	instances := map[string][]int{}
	for name, p := range ports {
		instances[name] = []int{p}
	}
	bin := filepath.Join(stack.Dir(), "bin")
	if _, err = system.Run(ctx, stack, bin, instances, false); err != nil {
		return err
	}
	address, err := supervisorPort(stack, used)
	if err != nil {
		return err
	}
	return stack.Start(ctx, system.Supervisor(stack, filepath.Join(bin, "outboxctl"), address))
}

// supervisorPort is SUPERVISOR_PORT, or the port after Connect's, or any other if that one is taken:
// nobody was promised it.
func supervisorPort(stack *devstack.Stack, used map[int]string) (int, error) {
	if _, running := stack.PID(system.SupervisorName); running && os.Getenv("SUPERVISOR_PORT") == "" {
		return stack.Port(system.SupervisorName), nil
	}
	after, err := port("CONNECT_PORT", 8083)
	if err != nil {
		return 0, err
	}
	p, err := port("SUPERVISOR_PORT", after+1)
	if err != nil || os.Getenv("SUPERVISOR_PORT") != "" || used[p] == "" && !taken(p) {
		return p, err
	}
	free, err := devstack.FreePorts(1)
	if err != nil {
		return 0, err
	}
	return free[0], nil
}

func taken(port int) bool {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err == nil {
		l.Close()
	}
	return err != nil
}

func stackStatus(cmd *cobra.Command) error {
	stack, err := openStack(cmd)
	if err != nil {
		return err
	}
	all, err := stack.Statuses()
	if err != nil {
		return err
	}
	if len(all) == 0 {
		fmt.Fprintln(cmd.OutOrStdout(), "nothing runs: scripts/up.sh starts the system")
	}
	for _, s := range all {
		state := fmt.Sprint("runs, pid ", s.PID)
		if !s.Running {
			state = "does not run"
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%-16s %s\n", s.Name, state)
	}
	return nil
}
