package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"outboxsaga/internal/system"

	"github.com/google/uuid"
)

// desk is where a service's dead letters are dealt with.
type desk struct {
	name string // order, stock or payment
	base string // its URL, without a slash at the end
	env  string // the variable that the URL can be set with
}

// desksOf are the desks that --service names.
func desksOf(name string) ([]desk, error) {
	var found []desk
	for _, s := range system.Services() {
		short := strings.TrimSuffix(s.Name, "-service")
		if name != "all" && name != short && name != s.Name {
			continue
		}
		base, variable, err := serviceURL(s)
		if err != nil {
			return nil, err
		}
		found = append(found, desk{name: short, base: base, env: variable})
	}
	if found == nil {
		return nil, fmt.Errorf("--service %q is not known: use order, stock, payment or all", name)
	}
	return found, nil
}

// serviceURL is where a service answers, and the variable that says so.
func serviceURL(s system.Service) (base, variable string, err error) {
	variable = strings.ToUpper(strings.TrimSuffix(s.Name, "-service")) + "_URL"
	if text := os.Getenv(variable); text != "" {
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return "", "", fmt.Errorf("%s=%q is not a URL: give one like http://127.0.0.1:%d", variable, text, s.DefaultPort)
		}
		return strings.TrimRight(text, "/"), variable, nil
	}
	p, err := port(s.PortVariable, s.DefaultPort)
	if err != nil {
		return "", "", err
	}
	return fmt.Sprintf("http://127.0.0.1:%d", p), variable, nil
}

// refusal is an answer of a service that is not a success.
type refusal struct {
	status int
	detail string
}

func (r *refusal) Error() string { return r.detail }

// ask sends a request and decodes the answer into out, if that is not nil. An answer that
// is no success is a [refusal]; any other error means that there was none.
func (d desk) ask(ctx context.Context, method, path, by, body string, out any) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, d.base+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if by != "" {
		req.Header.Set("X-Operator", by)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("%s-service does not answer at %s: start it, set %s, or name the other services with --service: %w", d.name, d.base, d.env, err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 16<<20))
	if err != nil {
		return fmt.Errorf("the answer of %s-service broke off, try again: %w", d.name, err)
	}
	if res.StatusCode >= 300 {
		var problem struct {
			Detail string `json:"detail"`
		}
		if json.Unmarshal(text, &problem) != nil || problem.Detail == "" {
			problem.Detail = fmt.Sprintf("%s %s answers %s: is %s the address of %s-service?", method, req.URL, res.Status, d.base, d.name)
		}
		return &refusal{res.StatusCode, problem.Detail}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(text, out); err != nil {
		return fmt.Errorf("%s %s: the answer is not understood, is %s the address of %s-service? %w", method, req.URL, d.base, d.name, err)
	}
	return nil
}

// list reads up to limit dead letters, and says whether there are more.
func (d desk) list(ctx context.Context, f letterFlags, limit int) (letters []letter, more bool, err error) {
	query := url.Values{}
	for name, value := range map[string]string{"status": f.status, "event_type": f.eventType, "topic": f.topic} {
		if value != "" && value != "any" {
			query.Set(name, value)
		}
	}
	for {
		// One is asked for even at the limit: it tells whether there are more.
		query.Set("limit", strconv.Itoa(max(1, min(100, limit-len(letters)))))
		var page struct {
			Letters []letter `json:"dead_letters"`
			Next    *string  `json:"next_cursor"`
		}
		if err := d.ask(ctx, http.MethodGet, "/dead-letters?"+query.Encode(), "", "", &page); err != nil {
			return nil, false, fmt.Errorf("list the dead letters of %s-service: %w", d.name, err)
		}
		if limit <= 0 {
			return nil, len(page.Letters) > 0, nil
		}
		for _, l := range page.Letters {
			l.Service = d.name
			letters = append(letters, l)
		}
		if page.Next == nil {
			return letters, false, nil
		}
		if len(letters) >= limit {
			return letters, true, nil
		}
		query.Set("cursor", *page.Next)
	}
}

// find reads a dead letter from the service that has it.
func find(ctx context.Context, service, id string) (desk, letter, error) {
	if parsed, err := uuid.Parse(id); err != nil || len(id) != 36 {
		return desk{}, letter{}, fmt.Errorf("%q is not the id of a dead letter: outboxctl dead-letters list prints them", id)
	} else {
		id = parsed.String()
	}
	desks, err := desksOf(service)
	if err != nil {
		return desk{}, letter{}, err
	}
	for _, d := range desks {
		var l letter
		err := d.ask(ctx, http.MethodGet, "/dead-letters/"+id, "", "", &l)
		var no *refusal
		switch {
		case err == nil:
			l.Service = d.name
			return d, l, nil
		case !errors.As(err, &no) || no.status != http.StatusNotFound:
			return desk{}, letter{}, fmt.Errorf("look for the dead letter %s: %w", id, err)
		}
	}
	return desk{}, letter{}, fmt.Errorf("there is no dead letter %s with --service %s: outboxctl dead-letters list --status any prints all", id, service)
}
