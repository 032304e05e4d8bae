package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"outboxsaga/internal/devstack"
	"outboxsaga/internal/provision"
	"outboxsaga/internal/system"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
)

// network is what lies between the processes: a proxy for each way from one to the other. Each can be made
// slow, can swallow everything, or refuse connections.
type network struct {
	server *toxiproxy.ApiServer
	links  map[string][]*toxiproxy.Proxy // by pair
	pairs  []string

	services devstack.Listener
	postgres map[string]int // by service: the proxy's port
}

func newNetwork() *network {
	return &network{server: toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop()), links: map[string][]*toxiproxy.Proxy{}, postgres: map[string]int{}}
}

// detours lays a way from every service and from the workers to PostgreSQL and to every broker.
func (n *network) detours(cfg devstack.Config) (d devstack.Detours, err error) {
	free, err := devstack.FreePorts(4 + 4*cfg.Brokers)
	if err != nil {
		return d, err
	}
	next := func() int {
		port := free[0]
		free = free[1:]
		return port
	}
	for _, s := range system.Services() {
		n.postgres[s.Name] = next()
		if err := n.link(strings.TrimSuffix(s.Name, "-service")+"-"+servicePostgres, n.postgres[s.Name], cfg.PostgresPort); err != nil {
			return d, err
		}
	}
	d.Postgres = next()
	if err := n.link(connectPostgres, d.Postgres, cfg.PostgresPort); err != nil {
		return d, err
	}
	for _, l := range []struct{ name, pair string }{{"SERVICES", serviceKafka}, {"CONNECT", connectKafka}} {
		listener := devstack.Listener{Name: l.name, Port: map[string]int{}, Proxy: map[string]int{}}
		for i := 1; i <= cfg.Brokers; i++ {
			broker := devstack.Instance(devstack.Kafka, i)
			listener.Port[broker], listener.Proxy[broker] = next(), next()
			if err := n.link(l.pair, listener.Proxy[broker], listener.Port[broker]); err != nil {
				return d, err
			}
		}
		d.Listeners = append(d.Listeners, listener)
	}
	n.services, d.Connect = d.Listeners[0], "CONNECT"
	return d, nil
}

// databaseURL is where a service finds its database.
func (n *network) databaseURL(service string, d provision.Database) string {
	return fmt.Sprintf("postgres://%s@127.0.0.1:%d/%s?sslmode=disable", d.Role, n.postgres[service], d.Name)
}

// link opens a way from a port on loopback to another.
func (n *network) link(pair string, from, to int) error {
	p := toxiproxy.NewProxy(n.server, fmt.Sprint(pair, " ", from), fmt.Sprint("127.0.0.1:", from), fmt.Sprint("127.0.0.1:", to))
	if err := p.Start(); err != nil {
		return fmt.Errorf("proxy from port %d to %d: %w", from, to, err)
	}
	if n.links[pair] == nil {
		n.pairs = append(n.pairs, pair)
	}
	n.links[pair] = append(n.links[pair], p)
	return nil
}

func (n *network) close() {
	for _, links := range n.links {
		for _, p := range links {
			p.Stop()
		}
	}
}

// The pairs, as in the kinds of faults. Those of single services begin with their name.
const (
	servicePostgres = "service–Postgres"
	serviceKafka    = "service–Kafka"
	connectPostgres = "Connect–Postgres"
	connectKafka    = "Connect–Kafka"
)

// networkFaults: each way is slow, silent or refused.
func (n *network) networkFaults() (all []kind) {
	for _, pair := range []string{servicePostgres, serviceKafka, connectPostgres, connectKafka} {
		one, other, _ := strings.Cut(pair, "–")
		touches := []string{map[string]string{"service": "service", "Connect": "worker"}[one], map[string]string{"Postgres": "Postgres", "Kafka": "broker"}[other]}
		of := func(dice *rand.Rand) string {
			return pick(dice, slices.DeleteFunc(slices.Clone(n.pairs), func(p string) bool { return !strings.HasSuffix(p, pair) }))
		}
		all = append(all,
			kind{pair + " slow", 1, func(dice *rand.Rand) fault {
				hold, by, p := between(dice, 3*time.Second, 6*time.Second), between(dice, 100*time.Millisecond, 800*time.Millisecond), of(dice)
				return slowLink{about{pair + " slow", fmt.Sprintf("%s slower by %d ms for %.1f s", p, by.Milliseconds(), hold.Seconds()), touches, hold, fromHeal}, n.links[p], by}
			}},
			kind{pair + " cut", 1, func(dice *rand.Rand) fault {
				hold, silent, p := between(dice, 2*time.Second, 8*time.Second), dice.IntN(3) > 0, of(dice)
				how := "refused"
				if silent {
					how = "silent"
				}
				return cutLink{about{pair + " cut", fmt.Sprintf("%s cut (%s) for %.1f s", p, how, hold.Seconds()), touches, hold, fromHeal}, n.links[p], silent}
			}})
	}
	return all
}

// slowLink delays every packet.
type slowLink struct {
	about
	links []*toxiproxy.Proxy
	by    time.Duration
}

func (f slowLink) inject(context.Context) (err error) {
	for _, p := range f.links {
		for _, direction := range []string{"upstream", "downstream"} {
			err = errors.Join(err, toxic(p, fmt.Sprintf(`{"type":"latency","stream":%q,"attributes":{"latency":%d,"jitter":%d}}`,
				direction, f.by.Milliseconds()/2, f.by.Milliseconds()/4)))
		}
	}
	return err
}

func (f slowLink) heal(ctx context.Context) error { return clean(ctx, f.links) }

func toxic(p *toxiproxy.Proxy, json string) error {
	_, err := p.Toxics.AddToxicJson(strings.NewReader(json))
	return err
}

func clean(ctx context.Context, links []*toxiproxy.Proxy) error {
	for _, p := range links {
		p.Toxics.ResetToxics(ctx)
	}
	return nil
}

// cutLink lets nothing through: silently, so that both ends wait, or with an end to all connections.
type cutLink struct {
	about
	links  []*toxiproxy.Proxy
	silent bool
}

func (f cutLink) inject(context.Context) (err error) {
	for _, p := range f.links {
		if !f.silent {
			p.Stop()
			continue
		}
		for _, direction := range []string{"upstream", "downstream"} {
			err = errors.Join(err, toxic(p, fmt.Sprintf(`{"type":"timeout","stream":%q,"attributes":{"timeout":0}}`, direction)))
		}
	}
	return err
}

func (f cutLink) heal(ctx context.Context) (err error) {
	if f.silent {
		return clean(ctx, f.links) // which ends the connections that were silent
	}
	for _, p := range f.links {
		err = errors.Join(err, p.Start())
	}
	return err
}
