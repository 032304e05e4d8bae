package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/puddle/v2"
)

// problemType prefixes the slugs: a type is a stable name, not an address.
const problemType = "urn:outboxsaga:problem:"

// Problem is an error that the client of an HTTP request gets to see, as
// application/problem+json (RFC 9457).
type Problem struct {
	Type   string `json:"type"`   // stable: clients may switch on it
	Title  string `json:"title"`  // the same for every problem of a type
	Status int    `json:"status"` // the response's status
	Detail string `json:"detail"` // what is wrong with this request
}

// Error is the detail.
func (p *Problem) Error() string { return p.Detail }

// NewProblem makes a problem of any status. slug is the end of its type: lower
// case words joined by hyphens, never to be changed.
func NewProblem(status int, slug, format string, args ...any) error {
	return &Problem{Type: problemType + slug, Title: http.StatusText(status), Status: status, Detail: fmt.Sprintf(format, args...)}
}

// BadRequest is a problem with status 400: the request can never work.
func BadRequest(slug, format string, args ...any) error {
	return NewProblem(http.StatusBadRequest, slug, format, args...)
}

// NotFound is a problem with status 404.
func NotFound(slug, format string, args ...any) error {
	return NewProblem(http.StatusNotFound, slug, format, args...)
}

// Conflict is a problem with status 409: the request does not fit the state of things.
func Conflict(slug, format string, args ...any) error {
	return NewProblem(http.StatusConflict, slug, format, args...)
}

// Unprocessable is a problem with status 422: understood, and refused.
func Unprocessable(slug, format string, args ...any) error {
	return NewProblem(http.StatusUnprocessableEntity, slug, format, args...)
}

// errUnavailable is told to clients while the database cannot work.
var errUnavailable = &Problem{
	Type: problemType + "unavailable", Title: http.StatusText(http.StatusServiceUnavailable), Status: http.StatusServiceUnavailable,
	Detail: "the service cannot reach its database now; nothing is known of this request's effect: repeat it, with the same Idempotency-Key",
}

// notBegun is a problem of which the client can be told more than [errUnavailable] does.
func notBegun(format string, args ...any) error {
	return NewProblem(http.StatusServiceUnavailable, "unavailable", format+"; nothing was done: repeat the request", args...)
}

// errInternal hides an error that the client can do nothing about.
var errInternal = &Problem{
	Type: problemType + "internal", Title: http.StatusText(http.StatusInternalServerError), Status: http.StatusInternalServerError,
	Detail: "the service failed at this request; the reason is in its log",
}

const (
	// requestTimeout bounds the work for a GET: a database that hangs must not hold the client too.
	requestTimeout = 10 * time.Second
	// slowRequestTimeout bounds all other requests. Their transactions have bounds of their own, see
	// [Gather]; the rest is for clients that asked to wait (up to 30 s).
	slowRequestTimeout = 45 * time.Second
)

// Handle makes a handler of a function that returns an error. A [Problem] is answered
// as it is; a database that cannot work as 503 with Retry-After; anything else, and a
// panic, as 500 and logged, here and nowhere else. f must not have written anything when it
// returns an error.
func Handle(f func(w http.ResponseWriter, r *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			switch p := recover(); p {
			case nil:
			case http.ErrAbortHandler:
				panic(p)
			default:
				logger(r.Context()).Error("http: handler panicked", "method", r.Method, "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
				writeProblem(w, errInternal)
			}
		}()
		most := slowRequestTimeout
		if r.Method == http.MethodGet {
			most = requestTimeout
		}
		ctx, cancel := context.WithTimeout(r.Context(), most)
		defer cancel()
		err := f(w, r.WithContext(ctx))
		if err == nil {
			return
		}
		var problem *Problem
		switch {
		case errors.As(err, &problem):
		case r.Context().Err() != nil:
			// The client went away; nobody reads the answer, and it is no fault of ours.
			problem = errUnavailable
		case Unavailable(err):
			logger(r.Context()).Warn("http: database not available", "method", r.Method, "path", r.URL.Path, "error", err)
			problem = errUnavailable
		default:
			logger(r.Context()).Error("http: request failed", "method", r.Method, "path", r.URL.Path, "error", err)
			problem = errInternal
		}
		writeProblem(w, problem)
	})
}

func writeProblem(w http.ResponseWriter, p *Problem) {
	if p.Status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	text, err := json.Marshal(p)
	if err != nil { // strings and a number: cannot happen
		text = []byte(`{}`)
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(p.Status)
	_, _ = w.Write(append(text, '\n')) // a client that went away is not our fault
}

// Unavailable tells a database that cannot work now from one that refused a statement:
// the same request may succeed later. A refusal of ours stays one, though the rollback after it failed.
func Unavailable(err error) bool {
	var problem *Problem
	if errors.As(err, &problem) {
		return problem.Status == http.StatusServiceUnavailable
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) && len(pg.Code) == 5 {
		switch pg.Code[:2] {
		case "08", // connection exception
			"28", // invalid authorization: a rotated password
			"40", // serialization failure, deadlock
			"53", // insufficient resources
			"57", // shutdown, crash, cancel, statement timeout
			"58": // I/O
			return true
		}
		return pg.Code == "55P03" || pg.Code == "25006" || pg.Code == "25P03" || pg.Code == "25P04" // lock timeout, standby, other timeouts
	}
	var connect *pgconn.ConnectError
	var network net.Error
	return errors.As(err, &connect) || errors.As(err, &network) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) ||
		errors.Is(err, pgconn.ErrConnClosed) || errors.Is(err, puddle.ErrClosedPool) ||
		errors.Is(err, pgx.ErrTxCommitRollback) || pgconn.SafeToRetry(err)
}

type loggerKey struct{}

// logger is the service's logger in the context of a request.
func logger(ctx context.Context) *slog.Logger {
	if log, ok := ctx.Value(loggerKey{}).(*slog.Logger); ok {
		return log
	}
	return slog.Default()
}
