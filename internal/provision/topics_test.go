package provision_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"outboxsaga/internal/devstack"
	"outboxsaga/internal/provision"
)

// With fewer brokers than replicas it waits for more, and in the end says what is missing.
func fewBrokers(t *testing.T, s *devstack.Stack) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	begin := time.Now()
	err := provision.Topics(ctx, s.Brokers(), 3, provision.Topic{Name: "wide", Partitions: 1})
	if err == nil || !strings.Contains(err.Error(), "start more brokers, or ask for fewer replicas") {
		t.Error(err)
	}
	if took := time.Since(begin); took < 900*time.Millisecond || took > 10*time.Second {
		t.Errorf("it gave up after %v", took)
	}
}
