// Command outboxctl is the operator's one command: it starts and stops the local
// stack, provisions databases and topics, and looks after a running system.
package main

import (
	"context"
	"errors"
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
		var coded exitCode
		if errors.As(err, &coded) {
			os.Exit(coded.code)
		}
		os.Exit(1)
	}
}

// exitCode is an error with an exit code of its own; others have 1.
type exitCode struct {
	error
	code int
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use: "outboxctl", Short: "Operate an outbox saga", SilenceUsage: true, SilenceErrors: true,
	}
	root.AddCommand(
		newStackCommand(),
		newProvisionCommand(),
		newCheckCommand(),
		newConnectorsCommand(),
		newSlotsCommand(),
		newDemoCommand(),
		newBenchCommand(),
		newBenchRelayCommand(),
		newChaosCommand(),
		newDeadLettersCommand(),
		newSagaCommand(),
		newSuperviseCommand(),
		newStatusCommand(),
		newAuditCommand(),
		newRewindCommand(),
		newResendCommand(),
		newHealthcheckCommand(),
	)
	return root
}
