package devstack

import (
	"fmt"
	"slices"
	"strings"
)

// Detours let something stand between the processes and the engines: a proxy of a test, which can be
// slow or cut. The zero value has none.
type Detours struct {
	// Postgres is the port on which the connectors reach PostgreSQL; 0: its own.
	Postgres int
	// Listeners are further ones of every broker.
	Listeners []Listener
	// Connect names the listener through which the workers reach the brokers; empty: the brokers' own.
	Connect string
}

// Listener is a further way to the brokers. A client that comes by it is sent by it to all of them.
type Listener struct {
	Name string // in capitals, as Kafka has them
	// Port has, by the broker's process name, where it listens, Proxy where clients are to connect.
	Port, Proxy map[string]int
}

// Addresses are where clients are to connect.
func (l Listener) Addresses() (all []string) {
	for _, port := range l.Proxy {
		all = append(all, hostPort(port))
	}
	slices.Sort(all)
	return all
}

// settings are the lines of a broker's file about its listeners.
func (d Detours) settings(broker, own, control string) []string {
	listeners, advertised := "PLAINTEXT://"+own+",CONTROLLER://"+control, "PLAINTEXT://"+own
	protocols := "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT"
	for _, l := range d.Listeners {
		listeners += fmt.Sprintf(",%s://%s", l.Name, hostPort(l.Port[broker]))
		advertised += fmt.Sprintf(",%s://%s", l.Name, hostPort(l.Proxy[broker]))
		protocols += "," + l.Name + ":PLAINTEXT"
	}
	return []string{"listeners=" + listeners, "advertised.listeners=" + advertised, "listener.security.protocol.map=" + protocols}
}

// bootstrap is where the workers find the brokers.
func (s *Stack) bootstrap() string {
	for _, l := range s.cfg.Detours.Listeners {
		if l.Name == s.cfg.Detours.Connect {
			return strings.Join(l.Addresses(), ",")
		}
	}
	return strings.Join(s.Brokers(), ",")
}

// cdcPort is where the connectors find PostgreSQL.
func (s *Stack) cdcPort() int {
	if s.cfg.Detours.Postgres != 0 {
		return s.cfg.Detours.Postgres
	}
	return s.cfg.PostgresPort
}
