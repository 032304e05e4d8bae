// Order-service takes orders over HTTP and leads them through the saga.
package main

import (
	"time"

	"outboxsaga/events"
	"outboxsaga/internal/service"
	"outboxsaga/order-service/migrations"
	"outboxsaga/order-service/order"
)

func main() {
	service.Main("order-service", "127.0.0.1:8080", open)
}

func open(rt service.Runtime) (service.Service, error) {
	timeout, err := rt.Duration("ORDER_TIMEOUT", 60*time.Second, time.Second)
	if err != nil {
		return service.Service{}, err
	}
	saga := order.NewSaga(rt, timeout)
	return service.Service{
		Topics:          order.Topics(),
		Partitions:      events.Partitions,
		Decode:          order.Decode,
		Batch:           saga.NewBatch,
		Committed:       saga.Committed,
		DeadLetterTopic: events.TopicOrderDLT,
		DeadLetterType:  events.TypeOrderDeadLettered,
		Routes:          saga.Routes,
		OpenAPI:         order.OpenAPI,
		Background:      saga.Background(),
		Migrations:      migrations.FS,
	}, nil
}
