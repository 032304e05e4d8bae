package service

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"outboxsaga/events"
	"outboxsaga/inbox"
	"outboxsaga/outbox"

	"github.com/google/uuid"
)

const someOrder = "0198c0de-0000-7000-8000-000000000001"

const someTrace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

func dead(key, payload string) inbox.DeadLetter {
	return inbox.DeadLetter{
		ID: outbox.NewID(), EventID: "x", EventType: "stock.requested", Topic: "stock", Partition: 3, Offset: 9,
		Key: []byte(key), Payload: []byte(payload), Error: "no", Attempts: 2, FailedAt: time.Now(), Traceparent: someTrace,
	}
}

func TestAnnounce(t *testing.T) {
	escaped := `"` + strings.Repeat("<", 300_000) + `"` // six times as long as JSON writes it
	for name, c := range map[string]struct {
		key, payload   string
		wantKey, order string
		form           string // json, base64, omitted or none
	}{
		"as it should be":           {someOrder, `{"a":1}`, someOrder, someOrder, "json"},
		"key is no order's id":      {"customer", `{"order_id":"` + someOrder + `"}`, "customer", someOrder, "json"},
		"nothing known":             {"customer", `{"order_id":"x"}`, "customer", "", "json"},
		"order_id of another type":  {"customer", `{"order_id":7}`, "customer", "", "json"},
		"no key":                    {"", `[]`, "unknown", "", "json"},
		"key is no text":            {"\xff", `{}`, "unknown", "", "json"},
		"key with a NUL":            {"a\x00", `{}`, "unknown", "", "json"},
		"long key":                  {strings.Repeat("k", 1001), `{}`, "unknown", "", "json"},
		"not JSON":                  {someOrder, `{"a":`, someOrder, someOrder, "base64"},
		"JSON that is no text":      {someOrder, "\"\xff\"", someOrder, someOrder, "base64"},
		"JSON with a NUL in it":     {someOrder, `"\u0000"`, someOrder, someOrder, "json"},
		"bytes":                     {someOrder, "\x00\x01", someOrder, someOrder, "base64"},
		"empty":                     {someOrder, "", someOrder, someOrder, "none"},
		"large":                     {someOrder, `"` + strings.Repeat("x", 900_000) + `"`, someOrder, someOrder, "json"},
		"too large":                 {someOrder, `"` + strings.Repeat("x", 1_000_000) + `"`, someOrder, someOrder, "omitted"},
		"too large once escaped":    {someOrder, escaped, someOrder, someOrder, "omitted"},
		"too large once in base64":  {someOrder, strings.Repeat("\x01", 900_000), someOrder, someOrder, "omitted"},
		"order in a large no-order": {"k", `{"order_id":"` + someOrder + `","x":"` + strings.Repeat("x", 1_000_000) + `"}`, "k", someOrder, "omitted"},
	} {
		ev, err := announce("stock.dlt", "stock.dead_lettered", dead(c.key, c.payload))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if ev.Topic != "stock.dlt" || ev.Type != "stock.dead_lettered" || ev.AggregateID != c.wantKey || ev.Traceparent != someTrace || len(ev.Payload) > outbox.MaxPayload {
			t.Errorf("%s: %s %s %q, %d bytes", name, ev.Topic, ev.Type, ev.AggregateID, len(ev.Payload))
		}
		body, err := events.Decode(ev.Type, ev.AggregateID, ev.Payload)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		d := body.(events.DeadLettered)
		form := "none"
		switch {
		case d.PayloadOmitted:
			form = "omitted"
		case d.Payload != nil:
			form = "json"
			var got, want bytes.Buffer
			if json.Compact(&got, d.Payload) != nil || json.Compact(&want, []byte(c.payload)) != nil || got.String() != want.String() {
				t.Errorf("%s: %.100s", name, d.Payload)
			}
		case d.PayloadBase64 != nil:
			form = "base64"
			if string(d.PayloadBase64) != c.payload {
				t.Errorf("%s: %.100q", name, d.PayloadBase64)
			}
		}
		if form != c.form || d.OrderID != c.order || d.Offset != 9 || d.Attempts != 2 {
			t.Errorf("%s: %s, order %q, %+.200v", name, form, d.OrderID, d)
		}
	}
}

// What is no trace context, and might not fit an outbox, goes no further.
func TestAnnounceWithoutATraceContext(t *testing.T) {
	d := dead(someOrder, `{}`)
	for _, trace := range []string{"", "t", strings.Repeat("0", 2000)} {
		d.Traceparent = trace
		if ev, err := announce("stock.dlt", "stock.dead_lettered", d); err != nil || ev.Traceparent != "" {
			t.Errorf("%.10q: %q, %v", trace, ev.Traceparent, err)
		}
	}
}

func TestBefore(t *testing.T) {
	for _, c := range [][2]string{
		{"0198c0de-0000-7000-8000-000000000001", "0198c0de-0000-7000-8000-000000000000"},
		{"0198c0de-0000-7000-8000-000000000000", "0198c0de-0000-7000-7fff-ffffffffffff"},
		{"ffffffff-ffff-ffff-ffff-ffffffffffff", "ffffffff-ffff-ffff-ffff-fffffffffffe"},
	} {
		if got := before(uuid.MustParse(c[0])); fmt.Sprint(got) != c[1] {
			t.Errorf("%s: %s", c[0], got)
		}
	}
}

// A trace context goes on with the messages; what is none, and may be as long as a header, does not.
func TestOutboxKeepsATraceContextOnly(t *testing.T) {
	m := events.Message{Topic: "stock", OrderID: someOrder, Type: "stock.requested", Payload: map[string]int{}}
	for given, want := range map[string]string{someTrace: someTrace, "": "", "t": "", strings.Repeat("0", 100_000): "", someTrace + "x": ""} {
		if ev, err := Outbox(uuid.Nil, m, given); err != nil || ev.Traceparent != want {
			t.Errorf("%.70q: %q, %v", given, ev.Traceparent, err)
		}
	}
}
