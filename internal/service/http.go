package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"outboxsaga/inbox"
	"outboxsaga/outbox"

	"github.com/gorilla/mux"
	"github.com/jackc/pgx/v5/pgxpool"
)

// newServer bounds what a client can hold: headers of 16 KiB, 15 s to send a request, a
// minute for the answer. A handler that waits longer sets a deadline of its own.
func newServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second,
		WriteTimeout:      time.Minute,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug), // broken connections
		BaseContext:       func(net.Listener) context.Context { return context.WithValue(context.Background(), loggerKey{}, log) },
	}
}

// handler is the whole HTTP surface of a service.
func handler(svc Service, api openAPI, h *health, letters deadLetters, m *metrics) http.Handler {
	router := NewRouter(m.observe)
	router.Handle("/openapi.json", Handle(api.serve)).Methods(http.MethodGet)
	router.Handle("/healthz", Handle(h.alive)).Methods(http.MethodGet)
	router.Handle("/readyz", Handle(h.ready)).Methods(http.MethodGet)
	router.Handle("/metrics", m.handler()).Methods(http.MethodGet)
	letters.routes(router)
	if svc.Routes != nil {
		svc.Routes(router)
	}
	return h.farewell(asGET(router))
}

// asGET has HEAD answered as GET is; net/http leaves out the body (RFC 9110, 9.3.2).
func asGET(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			get := *r
			get.Method = http.MethodGet
			r = &get
		}
		next.ServeHTTP(w, r)
	})
}

// NewRouter makes a router whose own answers, 404 and 405, are problems too, and that
// cleans no paths by redirects. middleware sees every request.
func NewRouter(middleware ...mux.MiddlewareFunc) *mux.Router {
	router := mux.NewRouter().SkipClean(true)
	router.Use(middleware...)
	var notFound, notAllowed http.Handler = Handle(func(w http.ResponseWriter, r *http.Request) error {
		return NotFound("no-such-path", "there is nothing at %q", clip(r.URL.Path))
	}), Handle(func(w http.ResponseWriter, r *http.Request) error {
		allowed := strings.Join(methods(router, r), ", ")
		w.Header().Set("Allow", allowed)
		return NewProblem(http.StatusMethodNotAllowed, "method-not-allowed", "%s is not allowed here, only %s", clip(r.Method), allowed)
	})
	for _, m := range middleware { // mux runs them for its own answers not
		notFound, notAllowed = m(notFound), m(notAllowed)
	}
	router.NotFoundHandler, router.MethodNotAllowedHandler = notFound, notAllowed
	return router
}

// methods lists what the path of r could be asked with.
func methods(router *mux.Router, r *http.Request) []string {
	var allowed []string
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		probe := *r
		probe.Method = method
		var match mux.RouteMatch
		if router.Match(&probe, &match) && match.MatchErr == nil {
			allowed = append(allowed, method)
			if method == http.MethodGet {
				allowed = append(allowed, http.MethodHead) // see asGET
			}
		}
	}
	return allowed
}

// health answers whether the service lives and whether it can work.
type health struct {
	pool     *pgxpool.Pool
	consumer *inbox.Consumer
	draining <-chan struct{}
	joined   atomic.Bool // the consumer could work once
	now      func() time.Time
}

// alive says no more than that the process answers: restarting it would not mend a
// database that is down.
func (h *health) alive(w http.ResponseWriter, _ *http.Request) error {
	return WriteJSON(w, http.StatusOK, map[string]string{"status": "ok"})
}

// readyTimeout bounds all checks of one readyz; brokerTimeout how long it waits for a broker that cannot change the answer: load
// balancers wait a second.
const readyTimeout, brokerTimeout = 2 * time.Second, 300 * time.Millisecond

// ready answers 200 or 503 with the result of each check. It says whether requests should come here, so a
// consumer that has worked and then loses Kafka does not make it red: requests need the database
// only, and all instances would be red at once.
func (h *health) ready(w http.ResponseWriter, r *http.Request) error {
	ctx, cancel := context.WithTimeout(r.Context(), readyTimeout)
	defer cancel()
	most := readyTimeout
	if h.joined.Load() {
		most = brokerTimeout
	}
	consumer := h.consumerReady(ctx, most)
	checks := map[string]error{
		"running":    h.running(),
		"database":   h.pool.Ping(ctx),
		"partitions": h.partitions(ctx),
		"consumer":   <-consumer,
	}
	if checks["consumer"] == nil {
		h.joined.Store(true)
	}
	status, texts := http.StatusOK, map[string]string{}
	for name, err := range checks {
		if texts[name] = "ok"; err == nil {
			continue
		}
		texts[name] = oneLine(err)
		if name != "consumer" || !h.joined.Load() {
			status = http.StatusServiceUnavailable
		}
	}
	return WriteJSON(w, status, map[string]any{"ready": status == http.StatusOK, "checks": texts})
}

// consumerReady asks the consumer, and answers within most, whatever a broker that hangs does.
func (h *health) consumerReady(ctx context.Context, most time.Duration) <-chan error {
	asked, answer := make(chan error, 1), make(chan error, 1)
	go func() { asked <- h.consumer.Ready(ctx) }()
	go func() {
		select {
		case err := <-asked:
			answer <- err
		case <-time.After(most):
			answer <- fmt.Errorf("no broker has answered within %s", most)
		}
	}()
	return answer
}

// farewell closes each connection with its next answer once shutdown has begun: the client's next
// request goes to another instance. Connections that are idle are left alone until the delay is over:
// a request may be on its way.
func (h *health) farewell(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h.running() != nil {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

func (h *health) running() error {
	select {
	case <-h.draining:
		return errors.New("the service is stopping")
	default:
		return nil
	}
}

// partitions of tomorrow must exist: without them every transaction will fail at midnight (UTC).
func (h *health) partitions(ctx context.Context) error {
	outboxUntil, err := outbox.PreparedUntil(ctx, h.pool)
	if err != nil {
		return err
	}
	_, inboxUntil, err := inbox.Window(ctx, h.pool)
	if err != nil {
		return err
	}
	tomorrow := h.now().UTC().Truncate(24 * time.Hour).Add(48 * time.Hour) // its end
	for table, until := range map[string]time.Time{"outbox": outboxUntil, "inbox": inboxUntil} {
		if until.Before(tomorrow) {
			return fmt.Errorf("the partitions of %s end at %s: the service could not prepare more", table, until.UTC().Format(time.RFC3339))
		}
	}
	return nil
}
