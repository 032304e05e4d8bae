// Package systemtest tests the whole system from outside: services as processes, on real
// PostgreSQL, Kafka and Debezium, spoken to over HTTP and Kafka, with faults that are
// real signals to real processes. It has no code besides its tests.
package systemtest
