package main

import (
	"context"
	"fmt"
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
		newStackUpCommand(),
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
				return devstack.Resolve(cmd.Context(), root, cmd.OutOrStdout())
			},
		},
	)
	return c
}

func newStackUpCommand() *cobra.Command {
	var shape devstack.Shape
	c := &cobra.Command{
		Use: "up", Short: "Start what does not run", Args: cobra.NoArgs,
		Long: `Start what does not run of PostgreSQL, Kafka, Kafka Connect, the three services and the supervisor, in STACK_DIR
(default .stack), and make roles, databases, migrations, slots and topics. The programs are
taken from STACK_DIR/bin. Variables of the environment reach the services. Connectors are registered by
scripts/register-connectors.sh.

With --brokers 3 everything in Kafka has three copies, two of which must be there for a write (RF 3, min ISR 2).
Later calls keep the numbers that are not given. The number of brokers stays as it was made; workers and
replicas may change at any time: what is too many is stopped.

Ports: POSTGRES_PORT (5432), KAFKA_PORT (9092), KAFKA_CONTROLLER_PORT (the one after), CONNECT_PORT (8083), ORDER_PORT (8080), STOCK_PORT
(8081), PAYMENT_PORT (8082). The second of a kind listens 10 ports above the first, the third 20; KAFKA_2_PORT,
KAFKA_CONTROLLER_2_PORT, CONNECT_2_PORT, ORDER_2_PORT and so on choose others.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, name := range []string{"brokers", "workers", "replicas"} {
				if f := cmd.Flags().Lookup(name); f.Changed && f.Value.String() == "0" {
					return fmt.Errorf("--%s is 0: give at least 1", name)
				}
			}
			return stackUp(cmd.Context(), cmd, shape)
		},
	}
	c.Flags().IntVar(&shape.Brokers, "brokers", 0, "Kafka brokers, 1, 3 or 5 (default: as before, else 1)")
	c.Flags().IntVar(&shape.Workers, "workers", 0, "Kafka Connect workers, 1 to 9 (default: as before, else 1)")
	c.Flags().IntVar(&shape.Replicas, "replicas", 0, "instances of each service, 1 to 9 (default: as before, else 1)")
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

// openStack opens the local stack with the shape it had.
func openStack(cmd *cobra.Command) (*devstack.Stack, error) { return openShape(cmd, devstack.Shape{}) }

func openShape(cmd *cobra.Command, shape devstack.Shape) (*devstack.Stack, error) {
	root, err := system.Root()
	if err != nil {
		return nil, err
	}
	dir := os.Getenv("STACK_DIR")
	if dir == "" {
		dir = filepath.Join(root, ".stack")
	}
	cfg := devstack.Config{Dir: dir, Root: root, Out: cmd.OutOrStdout(), Shape: shape, Ports: map[string]int{}}
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
	for i := 2; i <= 9; i++ {
		for name, variable := range map[string]string{devstack.Kafka: "KAFKA_PORT", "controller": "KAFKA_CONTROLLER_PORT", devstack.Connect: "CONNECT_PORT"} {
			if cfg.Ports[devstack.Instance(name, i)], err = port(devstack.PortVariable(variable, i), 0); err != nil {
				return nil, err
			}
		}
	}
	return devstack.Open(cfg)
}

func stackUp(ctx context.Context, cmd *cobra.Command, shape devstack.Shape) (err error) {
	stack, err := openShape(cmd, shape)
	if err != nil {
		return err
	}
	unlock, err := stack.Lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	shape = stack.Shape()
	ports, used := map[string][]int{}, map[int]string{}
	for i := 1; i <= shape.Replicas; i++ {
		for _, s := range system.Services() {
			name, variable := devstack.Instance(s.Name, i), devstack.PortVariable(s.PortVariable, i)
			byDefault := s.DefaultPort
			if i > 1 {
				byDefault = devstack.NextPort(ports[s.Name][0], i)
			}
			p, err := port(variable, byDefault)
			if err != nil {
				return err
			}
			if other := used[p]; other != "" {
				return fmt.Errorf("%s and %s are both %d: choose different ports", other, variable, p)
			}
			used[p], ports[s.Name] = variable, append(ports[s.Name], p)
			if err := checkFree(stack, name, variable, p); err != nil {
				return err
			}
		}
	}
	if os.Getenv("SUPERVISOR_PORT") != "" {
		p, err := port("SUPERVISOR_PORT", 0)
		if err == nil {
			err = checkFree(stack, system.SupervisorName, "SUPERVISOR_PORT", p)
		}
		if err != nil {
			return err
		}
	}
	defer func() {
		if err != nil {
			stack.Abort()
		}
	}()
	before, err := stack.Count(devstack.Connect)
	if err != nil {
		return err
	}
	bin := filepath.Join(stack.Dir(), "bin")
	if _, err = system.Run(ctx, stack, bin, ports, false); err != nil {
		return err
	}
	if err = stopSurplus(ctx, stack); err != nil {
		return err
	}
	address, err := supervisorPort(stack, used)
	if err != nil {
		return err
	}
	if before != shape.Workers { // it has been told of other workers
		if err = stack.Stop(ctx, system.SupervisorName); err != nil {
			return err
		}
	}
	return stack.Start(ctx, system.Supervisor(stack, filepath.Join(bin, "outboxctl"), address))
}

// stopSurplus stops workers and instances of services that are more than the stack's shape.
func stopSurplus(ctx context.Context, stack *devstack.Stack) error {
	most := map[string]int{devstack.Connect: stack.Shape().Workers}
	for _, s := range system.Services() {
		most[s.Name] = stack.Shape().Replicas
	}
	all, err := stack.Statuses()
	if err != nil {
		return err
	}
	for _, p := range all {
		kind, i := devstack.Kind(p.Name)
		if n, ok := most[kind]; !ok || i <= n {
			continue
		}
		if err := stack.Stop(ctx, p.Name); err != nil {
			return err
		}
		stack.Say("  %-18s stopped: more are not asked for", p.Name)
	}
	return nil
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
	if err != nil || os.Getenv("SUPERVISOR_PORT") != "" || used[p] == "" && devstack.CheckPort(devstack.Process{Port: p}) == nil {
		return p, err
	}
	free, err := devstack.FreePorts(1)
	if err != nil {
		return 0, err
	}
	return free[0], nil
}

// checkFree explains a port that another program has than the process that it is for. It is asked before anything is
// started, so that a taken port costs no time.
func checkFree(stack *devstack.Stack, name, variable string, p int) error {
	if _, running := stack.PID(name); running {
		return nil
	}
	return devstack.CheckPort(devstack.Process{Name: name, Port: p, PortVariable: variable})
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
		fmt.Fprintf(cmd.OutOrStdout(), "%-18s %s\n", s.Name, state)
	}
	return nil
}
