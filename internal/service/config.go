package service

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// config is what every service reads from its environment.
type config struct {
	pool     *pgxpool.Config // DATABASE_URL, DATABASE_POOL_SIZE (default 8)
	brokers  []string        // KAFKA_BROKERS: host:port, separated by commas
	addr     string          // HTTP_ADDR: host:port, default set by the service
	log      *slog.Logger    // LOG_LEVEL: debug, info (default), warn, error; LOG_FORMAT: text (default), json
	instance string          // INSTANCE_ID: unique in the consumer group; default none
	session  time.Duration   // SESSION_TIMEOUT: after which an instance that says nothing loses its partitions; default 1.5s
	maxBatch int             // MAX_BATCH: the most events, or requests, of one transaction; default 500
	pace     time.Duration   // PACE: how far apart transactions begin at the most, where processors are short; default 12ms, 0: never
	// How long events are kept: OUTBOX_RETENTION (default 72h), INBOX_RETENTION (default 264h: longer than the
	// outbox's and Kafka's together). TOPIC_RETENTION (default 168h) is what the topics are set to.
	outboxRetention, topicRetention, inboxRetention time.Duration

	shutdownDelay time.Duration // SHUTDOWN_DELAY: how long requests still come after readyz went red; default 3s
}

const (
	// sessionTimeout: partitions of a killed instance stand still for about 2 s. A heartbeat is sent
	// four times a second, so five in a row must be lost or late before a living instance is held for dead.
	sessionTimeout = 1500 * time.Millisecond
	// shutdownDelay is enough for a balancer that asks readyz every second and believes the second answer.
	shutdownDelay = 3 * time.Second
)

// configError is the operator's mistake: exit code 2.
type configError struct{ error }

func (e configError) Unwrap() error { return e.error }

func badConfig(format string, args ...any) error {
	return configError{fmt.Errorf(format, args...)}
}

func readConfig(getenv func(string) string, stderr io.Writer, name, addr string) (config, error) {
	c := config{addr: addr, instance: getenv("INSTANCE_ID")}
	var err error
	if c.log, err = newLogger(getenv, stderr, name); err != nil {
		return c, err
	}
	if c.pool, err = poolConfig(getenv, name); err != nil {
		return c, err
	}
	for broker := range strings.SplitSeq(getenv("KAFKA_BROKERS"), ",") {
		if broker = strings.TrimSpace(broker); broker == "" {
			continue
		}
		if err := checkAddress(broker); err != nil {
			return c, badConfig("KAFKA_BROKERS: %w", err)
		}
		c.brokers = append(c.brokers, broker)
	}
	if len(c.brokers) == 0 {
		return c, badConfig("KAFKA_BROKERS is not set: give it the brokers as host:port, separated by commas")
	}
	if text := getenv("HTTP_ADDR"); text != "" {
		c.addr = text
	}
	if err := checkAddress(c.addr); err != nil {
		return c, badConfig("HTTP_ADDR: %w", err)
	}
	if c.session, err = duration(getenv, "SESSION_TIMEOUT", sessionTimeout); err != nil {
		return c, err
	}
	if c.session < time.Second || c.session > 30*time.Second {
		return c, badConfig("SESSION_TIMEOUT is %s: it must be from 1s to 30s: shorter, and a busy machine is held for a dead one", c.session)
	}
	c.maxBatch = 500
	if text := getenv("MAX_BATCH"); text != "" {
		if c.maxBatch, err = strconv.Atoi(text); err != nil || c.maxBatch < 1 || c.maxBatch > 10_000 {
			return c, badConfig("MAX_BATCH is %q: it must be a whole number from 1 to 10000", text)
		}
	}
	if c.pace, err = duration(getenv, "PACE", usualPace); err != nil {
		return c, err
	}
	if c.pace > betweenTransactions {
		return c, badConfig("PACE is %s: it must be from 0 to %s: events and orders wait that long", c.pace, betweenTransactions)
	}
	if c.shutdownDelay, err = duration(getenv, "SHUTDOWN_DELAY", shutdownDelay); err != nil {
		return c, err
	}
	return c, c.readRetention(getenv)
}

// Variables are those that configure every service; docs/operations.md has a table of them.
func Variables() []string {
	return []string{
		"DATABASE_URL", "KAFKA_BROKERS", "HTTP_ADDR", "DATABASE_POOL_SIZE", "MAX_BATCH", "PACE", "SESSION_TIMEOUT", "INSTANCE_ID", "SHUTDOWN_DELAY",
		"OUTBOX_RETENTION", "TOPIC_RETENTION", "INBOX_RETENTION", "LOG_LEVEL", "LOG_FORMAT", "GOGC",
	}
}

// readRetention checks that the inbox remembers longer than an event can come.
func (c *config) readRetention(getenv func(string) string) (err error) {
	for _, v := range []struct {
		into *time.Duration
		name string
		days int
	}{{&c.outboxRetention, "OUTBOX_RETENTION", 3}, {&c.topicRetention, "TOPIC_RETENTION", 7}, {&c.inboxRetention, "INBOX_RETENTION", 11}} {
		if *v.into, err = duration(getenv, v.name, time.Duration(v.days)*24*time.Hour); err != nil {
			return err
		}
		if *v.into < 24*time.Hour || *v.into > 400*24*time.Hour {
			return badConfig("%s is %s: it must be 24h to 9600h", v.name, *v.into)
		}
	}
	if c.inboxRetention <= c.outboxRetention+c.topicRetention {
		return badConfig("INBOX_RETENTION is %s: it must be longer than OUTBOX_RETENTION and TOPIC_RETENTION together (%s), or an event that comes again could have its effect twice",
			c.inboxRetention, c.outboxRetention+c.topicRetention)
	}
	return nil
}

func newLogger(getenv func(string) string, stderr io.Writer, name string) (*slog.Logger, error) {
	var level slog.Level
	switch text := getenv("LOG_LEVEL"); text {
	case "debug", "info", "warn", "error":
		_ = level.UnmarshalText([]byte(text)) // one of the four
	case "":
	default:
		return nil, badConfig("LOG_LEVEL is %q: it must be debug, info, warn or error", text)
	}
	options := &slog.HandlerOptions{Level: level}
	var handler slog.Handler
	switch text := getenv("LOG_FORMAT"); text {
	case "", "text":
		handler = slog.NewTextHandler(stderr, options)
	case "json":
		handler = slog.NewJSONHandler(stderr, options)
	default:
		return nil, badConfig("LOG_FORMAT is %q: it must be text or json", text)
	}
	return slog.New(handler).With("service", name), nil
}

// poolSize is the default of DATABASE_POOL_SIZE: the consumer and the writers use one
// connection each, the rest is for reads ([Pool]). With fewer than leastPool there is no rest.
const (
	poolSize  = 8
	leastPool = 4
)

func poolConfig(getenv func(string) string, name string) (*pgxpool.Config, error) {
	text := getenv("DATABASE_URL")
	if text == "" {
		return nil, badConfig("DATABASE_URL is not set: give it the database as postgres://user:password@host:port/database")
	}
	cfg, err := PoolConfig(text, name)
	if err != nil {
		return nil, badConfig("DATABASE_URL %w", err)
	}
	if text := getenv("DATABASE_POOL_SIZE"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < leastPool || n > 1000 {
			return nil, badConfig("DATABASE_POOL_SIZE is %q: it must be a whole number from %d to 1000", text, leastPool)
		}
		cfg.MaxConns = int32(n)
	}
	return cfg, nil
}

// PoolConfig is how services connect to the database at a URL. Settings that the URL
// has itself are kept. An error never shows the password.
func PoolConfig(databaseURL, name string) (*pgxpool.Config, error) {
	u, err := url.Parse(databaseURL)
	if err != nil || (u.Scheme != "postgres" && u.Scheme != "postgresql") {
		// The parser's own reason may quote a piece of the password.
		return nil, errors.New("is not a URL of the form postgres://user:password@host:port/database (special characters in the password must be percent-encoded)")
	}
	cfg, err := pgxpool.ParseConfig(databaseURL)
	if err != nil {
		reason := oneLine(err)
		if i := strings.LastIndex(reason, "`"); i >= 0 { // pgx quotes the URL first
			reason = strings.TrimLeft(reason[i+1:], ": ")
		}
		if password, ok := u.User.Password(); ok && password != "" {
			reason = strings.ReplaceAll(reason, password, "xxxxx")
		}
		return nil, fmt.Errorf("cannot be used: %s", reason)
	}
	given := u.Query()
	if !given.Has("pool_max_conns") {
		cfg.MaxConns = poolSize
	} else if cfg.MaxConns < leastPool {
		return nil, fmt.Errorf("has pool_max_conns=%d: it must be %d or more", cfg.MaxConns, leastPool)
	}
	if !given.Has("connect_timeout") {
		cfg.ConnConfig.ConnectTimeout = 5 * time.Second
	}
	for key, value := range map[string]string{
		"application_name":  name,
		"statement_timeout": "10s",
		// What an instance that froze, or whose machine has gone, has locked is waited for that long: less than a statement
		// may take, and than [commitTimeout], so that who waits gets it. A transaction here is idle for a round trip.
		"idle_in_transaction_session_timeout": "5s",
		// Every statement here reads a few rows by their key. A plan is cached for as long as its
		// connection lives, and one that was made while the tables were small (a scan, a hash of
		// the whole table) would stay while they grow. So only index lookups are left to choose.
		"enable_seqscan":   "off",
		"enable_hashjoin":  "off",
		"enable_mergejoin": "off",
		// Which is then also the plan for any parameters: planning anew for each costs more than it
		// gains (a sixth of PostgreSQL's time per order at 500 orders/s).
		"plan_cache_mode": "force_generic_plan",
		"jit":             "off", // compiling costs more than such a statement runs
	} {
		if _, given := cfg.ConnConfig.RuntimeParams[key]; !given {
			cfg.ConnConfig.RuntimeParams[key] = value
		}
	}
	return cfg, nil
}

// duration reads a time like 60s or 1m30s from the environment. It is not negative.
func duration(getenv func(string) string, name string, def time.Duration) (time.Duration, error) {
	text := getenv(name)
	if text == "" {
		return def, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, badConfig("%s is %q: it must be a time like 500ms, 60s or 1m30s", name, text)
	}
	return d, nil
}

func checkAddress(addr string) error {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%q is not host:port", addr)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("%q has the port %q, which is not a number from 0 to 65535", addr, port)
	} else if n == 0 && !strings.HasSuffix(addr, ":0") {
		return errors.New("the port is 0")
	}
	return nil
}

// oneLine is err's text without line breaks: some libraries list causes below each other.
func oneLine(err error) string {
	return strings.Join(strings.Fields(err.Error()), " ")
}
