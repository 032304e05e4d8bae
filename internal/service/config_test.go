package service

import (
	"errors"
	"io"
	"log/slog"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

func environment(changes ...string) func(string) string {
	env := map[string]string{
		"DATABASE_URL": "postgres://stock:s3cret@db.example:5433/stockdb", "KAFKA_BROKERS": "k1.example:9092, k2.example:9093",
	}
	for i := 0; i < len(changes); i += 2 {
		env[changes[i]] = changes[i+1]
	}
	return func(name string) string { return env[name] }
}

func TestConfiguration(t *testing.T) {
	c, err := readConfig(environment("LOG_LEVEL", "warn", "INSTANCE_ID", "a", "SHUTDOWN_DELAY", "5s", "SESSION_TIMEOUT", "10s", "DATABASE_POOL_SIZE", "20"), io.Discard, "stock-service", "127.0.0.1:8081")
	if err != nil {
		t.Fatal(err)
	}
	if c.addr != "127.0.0.1:8081" || len(c.brokers) != 2 || c.brokers[1] != "k2.example:9093" || c.instance != "a" || c.shutdownDelay != 5*time.Second || c.session != 10*time.Second {
		t.Errorf("%+v", c)
	}
	if c.log.Enabled(t.Context(), slog.LevelInfo) || !c.log.Enabled(t.Context(), slog.LevelWarn) {
		t.Error("the log level is not warn")
	}
	params := c.pool.ConnConfig.RuntimeParams
	if c.pool.MaxConns != 20 || params["application_name"] != "stock-service" || params["enable_seqscan"] != "off" || params["statement_timeout"] != "10s" {
		t.Errorf("%d %v", c.pool.MaxConns, params)
	}
}

func TestTheURLsOwnSettingsWin(t *testing.T) {
	c, err := readConfig(environment("DATABASE_URL", "postgres://u@h/db?statement_timeout=3s&application_name=x"), io.Discard, "stock-service", ":1")
	if err != nil {
		t.Fatal(err)
	}
	if own, err := PoolConfig("postgres://u@h/db?pool_max_conns=32&connect_timeout=2", "x"); err != nil || own.MaxConns != 32 || own.ConnConfig.ConnectTimeout != 2*time.Second {
		t.Error(own.MaxConns, own.ConnConfig.ConnectTimeout, err)
	}
	if p := c.pool.ConnConfig.RuntimeParams; p["statement_timeout"] != "3s" || p["application_name"] != "x" || p["jit"] != "off" || c.pool.MaxConns != poolSize {
		t.Error(p, c.pool.MaxConns)
	}
}

func TestBadConfigurationIsOneClearLine(t *testing.T) {
	for _, c := range []struct{ name, value, want string }{
		{"DATABASE_URL", "", "DATABASE_URL is not set"},
		{"DATABASE_URL", "stockdb", "not a URL"},
		{"DATABASE_URL", "host=localhost password=s3cret", "not a URL"},
		{"DATABASE_URL", "mysql://u:s3cret@h/db", "not a URL"},
		{"DATABASE_URL", "postgres://u:s3cr%et@h/db", "not a URL"},
		{"DATABASE_URL", "postgres://u:s3/cret@h:5432/db", "DATABASE_URL"},
		{"DATABASE_URL", "postgres://u:s3cret@h:x/db", "DATABASE_URL"},
		{"DATABASE_URL", "postgres://u:s3cret@h/db?sslmode=maybe", "sslmode"},
		{"DATABASE_URL", "postgres://u:s3cret@h/db?sslrootcert=/no/such/file&sslmode=verify-full", "DATABASE_URL"},
		{"DATABASE_URL", "postgres://u:s3cret@h/db?pool_max_conns=x", "pool_max_conns"},
		{"DATABASE_URL", "postgres://u:s3cret@h/db?pool_max_conns=3", "4 or more"},
		{"DATABASE_POOL_SIZE", "0", "DATABASE_POOL_SIZE"},
		{"DATABASE_POOL_SIZE", "x", "DATABASE_POOL_SIZE"},
		{"KAFKA_BROKERS", "", "KAFKA_BROKERS is not set"},
		{"KAFKA_BROKERS", " , ", "KAFKA_BROKERS is not set"},
		{"KAFKA_BROKERS", "localhost", "host:port"},
		{"KAFKA_BROKERS", "localhost:kafka", "port"},
		{"HTTP_ADDR", "8081", "host:port"},
		{"HTTP_ADDR", ":99999", "99999"},
		{"LOG_LEVEL", "loud", "debug, info, warn or error"},
		{"LOG_FORMAT", "xml", "text or json"},
		{"SESSION_TIMEOUT", "2", "like 500ms"},
		{"SHUTDOWN_DELAY", "5", "like 500ms"},
		{"SHUTDOWN_DELAY", "-5s", "like 500ms"},
		{"SESSION_TIMEOUT", "500ms", "from 1s to 30s"},
		{"SESSION_TIMEOUT", "1m", "from 1s to 30s"},
		{"MAX_BATCH", "0", "1 to 10000"},
		{"MAX_BATCH", "many", "1 to 10000"},
		{"PACE", "2s", "0 to 100ms"},
		{"OUTBOX_RETENTION", "1h", "24h to 9600h"},
		{"OUTBOX_RETENTION", "3d", "like 500ms"},
		{"OUTBOX_RETENTION", "96h", "INBOX_RETENTION is 264h0m0s: it must be longer than"},
		{"INBOX_RETENTION", "240h", "OUTBOX_RETENTION and TOPIC_RETENTION together (240h0m0s)"},
	} {
		_, err := readConfig(environment(c.name, c.value), io.Discard, "stock-service", "127.0.0.1:8081")
		switch {
		case err == nil:
			t.Errorf("%s=%q is accepted", c.name, c.value)
			continue
		case !errors.As(err, new(configError)):
			t.Errorf("%s=%q: %v is no error of configuration", c.name, c.value, err)
		}
		line := oneLine(err)
		if !strings.Contains(line, c.want) || strings.Contains(line, "\n") {
			t.Errorf("%s=%q: %q does not say %q", c.name, c.value, line, c.want)
		}
		for _, secret := range []string{"s3cret", "s3cr%et", "s3/cret", "s3"} {
			if strings.Contains(line, secret) {
				t.Errorf("%s=%q: %q shows the password", c.name, c.value, line)
			}
		}
	}
}

func TestDuration(t *testing.T) {
	rt := Runtime{getenv: environment("ORDER_TIMEOUT", "90s", "BAD", "soon")}
	if d, err := rt.Duration("ORDER_TIMEOUT", time.Second, 90*time.Second); d != 90*time.Second || err != nil {
		t.Error(d, err)
	}
	if d, err := rt.Duration("ABSENT", time.Second, 0); d != time.Second || err != nil {
		t.Error(d, err)
	}
	if _, err := rt.Duration("BAD", time.Second, 0); !errors.As(err, new(configError)) {
		t.Error(err)
	}
	if _, err := rt.Duration("ORDER_TIMEOUT", time.Second, 91*time.Second); !errors.As(err, new(configError)) || !strings.Contains(err.Error(), "ORDER_TIMEOUT is 1m30s: it must be 1m31s or more") {
		t.Error(err)
	}
}

// Variables and the table in docs/operations.md have every variable that a service reads, and no other.
func TestVariablesAreListed(t *testing.T) {
	used := map[string]bool{"ORDER_TIMEOUT": true, "GOGC": true} // order-service reads the one, Main the other
	if _, err := readConfig(func(name string) string { used[name] = true; return environment()(name) }, io.Discard, "stock-service", ":1"); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n## Variables of the services\n")
	section, _, _ = strings.Cut(section, "\n## ")
	listed := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\|((?: `[A-Z_]+`)+) \\|").FindAllStringSubmatch(section, -1) {
		for name := range strings.FieldsSeq(row[1]) {
			listed[strings.Trim(name, "`")] = true
		}
	}
	if !maps.Equal(used, listed) {
		t.Errorf("a service reads\n%q\ndocs/operations.md lists\n%q", slices.Sorted(maps.Keys(used)), slices.Sorted(maps.Keys(listed)))
	}
	delete(used, "ORDER_TIMEOUT")
	if got, want := slices.Sorted(slices.Values(Variables())), slices.Sorted(maps.Keys(used)); !slices.Equal(got, want) {
		t.Errorf("a service reads\n%q\nVariables has\n%q", want, got)
	}
}
