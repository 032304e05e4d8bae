package main

import (
	"context"
	"time"

	"outboxsaga/internal/system"

	"github.com/spf13/cobra"
)

// newHealthcheckCommand is for containers, which have neither shell nor curl.
func newHealthcheckCommand() *cobra.Command {
	return &cobra.Command{
		Use: "healthcheck URL", Short: "Succeed if URL answers 200", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), 3*time.Second)
			defer cancel()
			return system.Ask(ctx, args[0])
		},
	}
}
