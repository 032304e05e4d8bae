// Command outboxctl is the operator's one command: it starts and stops the local
// stack, provisions databases and topics, and looks after a running system.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newRootCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "outboxctl:", err)
		os.Exit(1)
	}
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use: "outboxctl", Short: "Operate an outbox saga", SilenceUsage: true, SilenceErrors: true,
	}
	root.AddCommand(
		newStackCommand(),
		newProvisionCommand(),
		newConnectorsCommand(),
		newSlotsCommand(),
		newDemoCommand(),
		newBenchCommand(),
		newChaosCommand(),
		newDeadLettersCommand(),
		newSagaCommand(),
		newSuperviseCommand(),
		newStatusCommand(),
		newHealthcheckCommand(),
	)
	return root
}
