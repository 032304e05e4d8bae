package devstack

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Shape is how many processes of a kind a stack has. A stack remembers it in its folder: what is 0
// is as it was when the stack was last started, or 1.
type Shape struct {
	// Brokers is 1, 3 or 5. They are the quorum of controllers too. Three or more keep three copies
	// of everything, two of which must be there for a write: any one broker may be gone. The
	// number is fixed once Kafka has data.
	Brokers int `json:"brokers"`
	// Workers of Kafka Connect, 1 to 9: they share the connectors, and take over those of one that is gone.
	Workers int `json:"workers"`
	// Replicas of each service, 1 to 9. The stack only remembers it: who starts services counts them.
	Replicas int `json:"replicas"`
}

// stride is how far the ports of the second of a kind are from those of the first.
const stride = 10

// Instance is the name of the i-th process of a kind: NAME, NAME-2, NAME-3.
func Instance(kind string, i int) string {
	if i == 1 {
		return kind
	}
	return kind + "-" + strconv.Itoa(i)
}

// Kind is the inverse of [Instance].
func Kind(name string) (kind string, i int) {
	if cut := strings.LastIndexByte(name, '-'); cut > 0 {
		if i, err := strconv.Atoi(name[cut+1:]); err == nil && i > 1 {
			return name[:cut], i
		}
	}
	return name, 1
}

// PortVariable is the variable that sets the port of the i-th process of a kind: KAFKA_PORT, KAFKA_2_PORT.
func PortVariable(first string, i int) string {
	if i == 1 {
		return first
	}
	return fmt.Sprintf("%s_%d_PORT", strings.TrimSuffix(first, "_PORT"), i)
}

// NextPort is the port of the i-th process of a kind where no other is asked for.
func NextPort(first, i int) int { return first + stride*(i-1) }

// UseFreePorts gives every engine of the shape a port that nobody listens on right now. For tests.
func (c *Config) UseFreePorts() error {
	c.Shape = c.Shape.or(Shape{1, 1, 1})
	free, err := FreePorts(1 + 2*c.Brokers + c.Workers)
	if err != nil {
		return err
	}
	c.PostgresPort, c.Ports = free[0], map[string]int{}
	for i := 1; i <= c.Brokers; i++ {
		c.Ports[Instance(Kafka, i)], c.Ports[Instance(controller, i)] = free[2*i-1], free[2*i]
	}
	for i := 1; i <= c.Workers; i++ {
		c.Ports[Instance(Connect, i)] = free[2*c.Brokers+i]
	}
	c.KafkaPort, c.ControllerPort, c.ConnectPort = c.Ports[Kafka], c.Ports[controller], c.Ports[Connect]
	return nil
}

// port is where the i-th of brokers, controllers or workers listens.
func (c *Config) port(kind string, i int) int {
	first := map[string]int{Kafka: c.KafkaPort, controller: c.ControllerPort, Connect: c.ConnectPort}[kind]
	if given := c.Ports[Instance(kind, i)]; given != 0 && i > 1 {
		return given
	}
	return NextPort(first, i)
}

// or fills what is 0 from another shape.
func (s Shape) or(other Shape) Shape {
	for _, f := range []struct{ mine, other *int }{{&s.Brokers, &other.Brokers}, {&s.Workers, &other.Workers}, {&s.Replicas, &other.Replicas}} {
		if *f.mine == 0 {
			*f.mine = *f.other
		}
	}
	return s
}

func (s Shape) check() error {
	switch {
	case s.Brokers != 1 && s.Brokers != 3 && s.Brokers != 5:
		return fmt.Errorf("%d brokers: give 1, 3 or 5; they are the quorum of controllers too, which needs an odd number", s.Brokers)
	case s.Workers < 1 || s.Workers > 9:
		return fmt.Errorf("%d workers: give 1 to 9", s.Workers)
	case s.Replicas < 1 || s.Replicas > 9:
		return fmt.Errorf("%d replicas of the services: give 1 to 9", s.Replicas)
	}
	return nil
}

// settle decides the shape of a stack from what was asked for and what its folder remembers.
func (c *Config) settle() error {
	had, err := readShape(c.Dir)
	if err != nil {
		return err
	}
	c.Shape = c.Shape.or(had).or(Shape{1, 1, 1})
	if c.Engines != nil && (c.Brokers > 1 || c.Workers > 1) {
		return errors.New("engines in containers are one broker and one worker: compose has a profile for more")
	}
	return c.Shape.check()
}

func shapeFile(dir string) string { return filepath.Join(dir, ".shape") }

// stackIn tells whether a stack was ever begun in a folder: the shape is written before anything else, and before that scripts/up.sh
// marks a folder as new.
func stackIn(dir string) bool {
	_, begun := os.Stat(shapeFile(dir))
	_, marked := os.Stat(filepath.Join(dir, ".new"))
	return begun == nil || marked == nil
}

// readShape is what the folder remembers; zero where it is new.
func readShape(dir string) (s Shape, err error) {
	text, err := os.ReadFile(shapeFile(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &s)
	}
	if err != nil {
		return s, fmt.Errorf("%s does not say how many processes the stack has: remove the file and name them with --brokers, --workers and --replicas: %w", shapeFile(dir), err)
	}
	return s, nil
}

// remember writes the shape down, before anything is made after it. Kafka's data are those of a fixed
// number of brokers.
func (s *Stack) remember() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	had, err := readShape(s.cfg.Dir)
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(s.cfg.Dir, Kafka)); err == nil {
		if brokers := max(had.Brokers, 1); brokers != s.cfg.Brokers {
			return fmt.Errorf("the stack in %s was made with --brokers %d, not %d, and its topics lie there: go on with that number, or remove all data first (scripts/down.sh --wipe)", s.cfg.Dir, brokers, s.cfg.Brokers)
		}
	}
	if had == s.cfg.Shape {
		return nil
	}
	text, err := json.Marshal(s.cfg.Shape)
	if err != nil {
		return err
	}
	half := shapeFile(s.cfg.Dir) + ".new"
	if err := os.WriteFile(half, append(text, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(half, shapeFile(s.cfg.Dir))
}

// Shape is how many processes of each kind the stack has.
func (s *Stack) Shape() Shape { return s.cfg.Shape }

// BrokerNames are the processes of Kafka, the first one first.
func (s *Stack) BrokerNames() []string { return instances(Kafka, s.cfg.Brokers) }

// WorkerNames are the processes of Kafka Connect.
func (s *Stack) WorkerNames() []string { return instances(Connect, s.cfg.Workers) }

func instances(kind string, n int) (names []string) {
	for i := 1; i <= n; i++ {
		names = append(names, Instance(kind, i))
	}
	return names
}

// Brokers are the addresses of all brokers.
func (s *Stack) Brokers() (addresses []string) {
	for i := 1; i <= s.cfg.Brokers; i++ {
		addresses = append(addresses, hostPort(s.cfg.port(Kafka, i)))
	}
	return addresses
}

// ConnectURLs are the addresses of the REST APIs of all workers. Each answers for all of them.
func (s *Stack) ConnectURLs() (urls []string) {
	for i := 1; i <= s.cfg.Workers; i++ {
		urls = append(urls, "http://"+hostPort(s.cfg.port(Connect, i)))
	}
	return urls
}

// ConnectURL is the address of the first worker's REST API.
func (s *Stack) ConnectURL() string { return s.ConnectURLs()[0] }

// ReplicationFactor is of how many copies of a topic's records the stack is capable.
func (s *Stack) ReplicationFactor() int16 { return int16(min(3, s.cfg.Brokers)) }

// Count is how many processes of a kind were started and not stopped since.
func (s *Stack) Count(kind string) (n int, err error) {
	names, err := s.names()
	for _, name := range names {
		if k, _ := Kind(name); k == kind {
			n++
		}
	}
	return n, err
}
