// Payment-service charges customers for orders and refunds them when an order fails.
package main

import (
	"context"

	"outboxsaga/events"
	"outboxsaga/internal/service"
	"outboxsaga/payment-service/migrations"
	"outboxsaga/payment-service/payment"
)

func main() {
	service.Main("payment-service", "127.0.0.1:8082", open)
}

func open(rt service.Runtime) (service.Service, error) {
	store := payment.NewStore(rt.Pool)
	return service.Service{
		Topics:          payment.Topics(),
		Partitions:      events.Partitions,
		Decode:          payment.Decode,
		Batch:           payment.NewBatch,
		DeadLetterTopic: events.TopicPaymentDLT,
		DeadLetterType:  events.TypePaymentDeadLettered,
		Routes:          store.Routes,
		OpenAPI:         payment.OpenAPI,
		Background:      []func(context.Context) error{store.Run},
		Migrations:      migrations.FS,
	}, nil
}
