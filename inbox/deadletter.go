package inbox

import (
	"time"

	"github.com/google/uuid"
)

// Status is the state of a dead letter. It starts [Open]; [Consumer.Redrive] and
// [Consumer.Discard] move it on, once.
type Status string

// The states of a dead letter.
const (
	Open      Status = "open"
	Redriven  Status = "redriven"
	Discarded Status = "discarded"
)

// DeadLetter is a record that could not be handled.
type DeadLetter struct {
	ID uuid.UUID // its own id, a UUIDv7
	// EventID is the header "id" as it was, valid or not; empty where there was none.
	EventID     string
	EventType   string
	Topic       string
	Partition   int32
	Offset      int64
	RecordedAt  time.Time // the record's timestamp
	Key         []byte
	Payload     []byte
	Traceparent string
	Error       string
	Attempts    int
	FailedAt    time.Time
	Status      Status
	// ResolvedAt, ResolvedBy and Reason say who redrove or discarded it, when and why.
	ResolvedAt *time.Time
	ResolvedBy *string
	Reason     *string
}
