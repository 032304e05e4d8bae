package main

import (
	"strings"
	"testing"
)

// The local stack's databases have the names of everybody's: they say nothing about a worker of elsewhere.
func TestAWorkerOfElsewhereNeedsItsDatabases(t *testing.T) {
	for _, variable := range []string{"CONNECTOR_DATABASE_URL", "ADMIN_DATABASE_URL", "ORDER_DATABASE_URL", "STOCK_DATABASE_URL", "PAYMENT_DATABASE_URL"} {
		t.Setenv(variable, "")
	}
	var o connectorOptions
	cmd := newConnectorsCommand()
	const elsewhere = "http://connect.example:8083"
	if address, variable, err := o.databaseURL(cmd, elsewhere, "orderdb"); err == nil || variable != "ORDER_DATABASE_URL" || !strings.Contains(err.Error(), "not at a loopback address") {
		t.Errorf("%q, %s: %v", address, variable, err)
	}
	for _, worker := range []string{"http://127.0.0.1:8083", "http://localhost:8083", "http://[::1]:8083"} {
		if address, _, err := o.databaseURL(cmd, worker, "orderdb"); err != nil || !strings.Contains(address, "127.0.0.1") {
			t.Errorf("%s: %q: %v", worker, address, err)
		}
	}
	t.Setenv("STOCK_DATABASE_URL", "postgres://u@db.example/stockdb")
	if _, _, err := o.databaseURL(cmd, elsewhere, "orderdb"); err == nil || !strings.Contains(err.Error(), "set all three") {
		t.Error(err)
	}
	if address, _, err := o.databaseURL(cmd, elsewhere, "stockdb"); err != nil || address != "postgres://u@db.example/stockdb" {
		t.Error(address, err)
	}
}
