// Package connect speaks to Kafka Connect's REST API, as far as connectors of the
// outbox need it.
//
// Connect says RUNNING also while nothing flows. [Client.WaitStreaming] therefore asks
// PostgreSQL as well: a connector streams when its slot is active. [CheckBeats] asks Kafka too:
// what is read may still not arrive.
package connect

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Client is a client of one worker, which speaks for its cluster.
type Client struct {
	URL string // http://host:port
}

// Status is the state of a connector.
type Status struct {
	Name      string `json:"name"`
	Connector State  `json:"connector"`
	Tasks     []State
}

// Failed is what of the connector has failed; nil: nothing.
func (s Status) Failed() *State {
	for _, one := range append([]State{s.Connector}, s.Tasks...) {
		if one.State == "FAILED" {
			return &one
		}
	}
	return nil
}

// State is the state of a connector or of a task of it.
type State struct {
	ID     int    `json:"id"`
	State  string `json:"state"` // RUNNING, FAILED, PAUSED, UNASSIGNED, RESTARTING
	Worker string `json:"worker_id"`
	Trace  string `json:"trace"` // the Java stack trace of a failure
}

// Cause is the last cause in the trace, on one line.
func (s State) Cause() string {
	cause := ""
	for line := range strings.Lines(s.Trace) {
		line = strings.TrimSpace(line)
		if cause == "" || strings.HasPrefix(line, "Caused by:") {
			cause = strings.TrimPrefix(line, "Caused by: ")
		}
	}
	return cause
}

// ErrNotFound: there is no connector of that name.
var ErrNotFound = errors.New("there is no such connector")

// File is a connector's configuration, as in connectors/NAME.json.
type File struct {
	Name   string // the file's name without .json; the connector's, and its database's
	Config json.RawMessage
}

// Files reads the connectors of a folder.
func Files(dir string) ([]File, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil || len(names) == 0 {
		return nil, fmt.Errorf("no connectors in %s (%v)", dir, err)
	}
	files := make([]File, len(names))
	for i, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		if !json.Valid(text) {
			return nil, fmt.Errorf("%s is not JSON", name)
		}
		files[i] = File{strings.TrimSuffix(filepath.Base(name), ".json"), text}
	}
	return files, nil
}

// Put registers a connector, or changes its configuration.
func (c Client) Put(ctx context.Context, f File) error {
	return c.call(ctx, http.MethodPut, "/connectors/"+f.Name+"/config", f.Config, nil)
}

// Delete removes a connector. Its slot and its offsets stay. Its status may outlive it
// for a moment.
func (c Client) Delete(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, "/connectors/"+name, nil, nil)
}

// Restart restarts what of the connector has failed, or all of it.
func (c Client) Restart(ctx context.Context, name string, onlyFailed bool) error {
	return c.call(ctx, http.MethodPost, fmt.Sprintf("/connectors/%s/restart?includeTasks=true&onlyFailed=%t", name, onlyFailed), nil, nil)
}

// Status returns the state of a connector, or [ErrNotFound].
func (c Client) Status(ctx context.Context, name string) (Status, error) {
	var s Status
	err := c.call(ctx, http.MethodGet, "/connectors/"+name+"/status", nil, &s)
	return s, err
}

// CheckPlugin says whether the worker has the connector's class.
func (c Client) CheckPlugin(ctx context.Context) error {
	var plugins []struct{ Class string }
	if err := c.call(ctx, http.MethodGet, "/connector-plugins", nil, &plugins); errors.Is(err, ErrNotFound) {
		return fmt.Errorf("%s is not Kafka Connect, or it is still starting: try again, or set CONNECT_URL", c.URL)
	} else if err != nil {
		return err
	}
	for _, p := range plugins {
		if p.Class == "io.debezium.connector.postgresql.PostgresConnector" {
			return nil
		}
	}
	return fmt.Errorf("%s: %w", c.URL, errNoPlugin)
}

var errNoPlugin = errors.New("the Connect worker does not have the Debezium plugin: unpack debezium-connector-postgres into a folder of its plugin.path and restart it")

// Statuses returns the states of all connectors, by name.
func (c Client) Statuses(ctx context.Context) (map[string]Status, error) {
	var all map[string]struct{ Status Status }
	if err := c.call(ctx, http.MethodGet, "/connectors?expand=status", nil, &all); err != nil {
		return nil, err
	}
	found := map[string]Status{}
	for name, s := range all {
		found[name] = s.Status
	}
	return found, nil
}

// Stop ends the tasks of a connector and returns when they have ended. Its settings and
// offsets stay; it does not start again before [Client.Resume].
func (c Client) Stop(ctx context.Context, name string) error {
	if err := c.call(ctx, http.MethodPut, "/connectors/"+name+"/stop", nil, nil); err != nil {
		return err
	}
	for {
		s, err := c.Status(ctx, name)
		if err == nil && s.Connector.State == "STOPPED" && len(s.Tasks) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("connector %s does not stop: %w", name, errors.Join(err, ctx.Err()))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Resume starts a stopped or paused connector.
func (c Client) Resume(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodPut, "/connectors/"+name+"/resume", nil, nil)
}

// ResetOffsets makes a stopped connector forget how far it had come. With
// snapshot.mode=when_needed it then sends its table again, and goes on at its slot's position.
func (c Client) ResetOffsets(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, "/connectors/"+name+"/offsets", nil, nil)
}

// Offset is the position in the log, in bytes, up to which a Debezium connector for PostgreSQL has read; 0 if it keeps none.
func (c Client) Offset(ctx context.Context, name string) (int64, error) {
	var all struct {
		Offsets []struct {
			Offset struct {
				LSN       int64 `json:"lsn"`
				Processed int64 `json:"lsn_proc"`
				Commit    int64 `json:"lsn_commit"`
			}
		}
	}
	err := c.call(ctx, http.MethodGet, "/connectors/"+name+"/offsets", nil, &all)
	var upto int64
	for _, o := range all.Offsets {
		upto = max(upto, o.Offset.LSN, o.Offset.Processed, o.Offset.Commit)
	}
	return upto, err
}

// call sends a request and decodes the answer into out, if that is not nil. It
// waits out the 409 that a worker answers while it rebalances.
func (c Client) call(ctx context.Context, method, path string, body []byte, out any) error {
	for {
		req, err := http.NewRequestWithContext(ctx, method, c.URL+path, bytes.NewReader(body))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/json")
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return fmt.Errorf("no answer of Kafka Connect: start it, or set CONNECT_URL: %w", err)
		}
		text, err := io.ReadAll(io.LimitReader(res.Body, 4<<20))
		res.Body.Close()
		if err != nil {
			return fmt.Errorf("read the answer of Kafka Connect: %w", err)
		}
		switch {
		case res.StatusCode == http.StatusConflict:
			select {
			case <-ctx.Done():
				return fmt.Errorf("%s %s: Kafka Connect still rebalances: %w", method, path, ctx.Err())
			case <-time.After(100 * time.Millisecond):
			}
			continue
		case res.StatusCode == http.StatusNotFound:
			return fmt.Errorf("%s: %w", path, ErrNotFound)
		case res.StatusCode >= 300:
			var problem struct {
				Message string `json:"message"`
			}
			if json.Unmarshal(text, &problem) == nil && problem.Message != "" {
				text = []byte(problem.Message)
			}
			if bytes.Contains(text, []byte("Failed to find any class")) {
				return errNoPlugin
			}
			advice := ""
			if bytes.Contains(text, []byte("'poll.interval.ms' value is invalid")) || bytes.Contains(text, []byte("'max.batch.size' value is invalid")) { // the worker left ${env:…} as it is
				advice = "; set CDC_POLL_INTERVAL_MS=20 and CDC_MAX_BATCH_SIZE=1 in the environment of every Connect worker, or start them by outboxctl connectors worker, which sets them; and restart them"
			}
			return fmt.Errorf("%s %s: Kafka Connect answers %s: %s%s", method, path, res.Status, bytes.TrimSpace(text), advice)
		case out == nil:
			return nil
		}
		if err := json.Unmarshal(text, out); err != nil {
			return fmt.Errorf("%s %s: the answer of Kafka Connect is not understood: %w", method, path, err)
		}
		return nil
	}
}
