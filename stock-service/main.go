// Stock-service reserves goods for orders and releases them when an order fails.
package main

import (
	"context"

	"outboxsaga/events"
	"outboxsaga/internal/service"
	"outboxsaga/stock-service/migrations"
	"outboxsaga/stock-service/stock"
)

func main() {
	service.Main("stock-service", "127.0.0.1:8081", open)
}

func open(rt service.Runtime) (service.Service, error) {
	store := stock.NewStore(rt.Pool)
	return service.Service{
		Topics:          stock.Topics(),
		Partitions:      events.Partitions,
		Decode:          stock.Decode,
		Batch:           stock.NewBatch,
		DeadLetterTopic: events.TopicStockDLT,
		DeadLetterType:  events.TypeStockDeadLettered,
		Routes:          store.Routes,
		OpenAPI:         stock.OpenAPI,
		Background:      []func(context.Context) error{store.Run},
		Migrations:      migrations.FS,
	}, nil
}
