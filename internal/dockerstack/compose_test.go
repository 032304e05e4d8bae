package dockerstack

import (
	"bufio"
	"cmp"
	"encoding/json"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

const root = "../.."

// local gives what .env gives, as Compose does without any other environment.
func local(t *testing.T) func(string) (string, bool) {
	t.Helper()
	values := properties(t, ".env")
	return func(name string) (string, bool) { v, ok := values[name]; return v, ok }
}

func compose(t *testing.T, more map[string]string) Compose {
	t.Helper()
	env := local(t)
	c, err := ReadCompose(root, func(name string) (string, bool) {
		if v, ok := more[name]; ok {
			return v, true
		}
		return env(name)
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, file))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// properties reads lines key=value, with spaces around = or not, and 'quoted' values.
func properties(t *testing.T, file string) map[string]string {
	t.Helper()
	found := map[string]string{}
	lines := bufio.NewScanner(strings.NewReader(read(t, file)))
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		key, value, ok := strings.Cut(line, "=")
		if ok && !strings.HasPrefix(line, "#") {
			found[strings.TrimSpace(key)] = strings.Trim(strings.TrimSpace(value), "'")
		}
	}
	if len(found) == 0 {
		t.Fatal(file, "sets nothing")
	}
	return found
}

// What a place may set besides the shared files: addresses, paths, and the size of the cluster.
var brokerByPlace = []string{"node.id", "listeners", "advertised.listeners", "listener.security.protocol.map", "controller.quorum.voters", "log.dirs",
	"default.replication.factor", "min.insync.replicas", "offsets.topic.replication.factor", "transaction.state.log.replication.factor",
	"transaction.state.log.min.isr", "share.coordinator.state.topic.replication.factor", "share.coordinator.state.topic.min.isr"}
var workerByPlace = []string{"bootstrap.servers", "listeners", "rest.advertised.host.name", "plugin.path", "storage.replication.factor"}

// notSettings are variables that Kafka's image does not turn into settings of the broker.
var notSettings = []string{"KAFKA_HEAP_OPTS", "KAFKA_LOG4J_OPTS", "KAFKA_GC_LOG_OPTS", "KAFKA_JVM_PERFORMANCE_OPTS"}

func TestBrokersOfComposeReadTheSharedFile(t *testing.T) {
	file := properties(t, "debezium/broker.properties")
	for name, s := range compose(t, nil).Services {
		if !strings.HasPrefix(s.Image, "apache/kafka:") {
			continue
		}
		for _, want := range []string{"./debezium/broker.properties:/mnt/shared/config/server.properties:ro", "./debezium/log4j2.properties:/mnt/shared/config/log4j2.properties:ro",
			"./debezium/jvm.options:/mnt/shared/config/jvm.options:ro"} {
			if !slices.Contains(s.Volumes, want) {
				t.Errorf("%s does not mount %s: %q", name, want, s.Volumes)
			}
		}
		if got := s.Environment["KAFKA_JVM_PERFORMANCE_OPTS"]; got != "@/mnt/shared/config/jvm.options" {
			t.Errorf("%s has KAFKA_JVM_PERFORMANCE_OPTS %q: the JVMs read debezium/jvm.options", name, got)
		}
		for variable, value := range s.Environment {
			after, isKafka := strings.CutPrefix(variable, "KAFKA_")
			if !isKafka || slices.Contains(notSettings, variable) {
				continue
			}
			key := strings.ToLower(strings.ReplaceAll(after, "_", "."))
			if !slices.Contains(brokerByPlace, key) {
				t.Errorf("%s sets %s: put %s into debezium/broker.properties, which all brokers read", name, variable, key)
			}
			// The size of the cluster: one broker, unless scale.env says otherwise.
			if shared, ok := file[key]; ok && key != "listener.security.protocol.map" && shared != value {
				t.Errorf("%s sets %s to %s, debezium/broker.properties to %s", name, variable, value, shared)
			}
		}
	}
}

func TestWorkersOfComposeReadTheSharedFile(t *testing.T) {
	dockerfile := read(t, "debezium/Dockerfile")
	for _, want := range []string{"debezium/worker.properties", "debezium/log4j2.properties", "debezium/jvm.options", "@/opt/connect/jvm.options", "COPY connectors ", "COPY debezium/pom.xml "} {
		if !strings.Contains(dockerfile, want) {
			t.Errorf("debezium/Dockerfile has no %q", want)
		}
	}
	script := read(t, "debezium/connect.sh")
	if !strings.Contains(script, "cat /opt/connect/worker.properties") {
		t.Error("debezium/connect.sh does not begin with worker.properties")
	}
	for _, found := range regexp.MustCompile(`[ '"%.s]([a-z]+(?:\.[a-z]+)+|listeners)=`).FindAllStringSubmatch(script, -1) {
		if key := strings.TrimPrefix(found[1], "s."); !slices.Contains(workerByPlace, key) {
			t.Errorf("debezium/connect.sh sets %s: put it into debezium/worker.properties, which all workers read", key)
		}
	}
	workers := 0
	for name, s := range compose(t, nil).Services {
		if s.Build == nil || s.Build.Dockerfile != "debezium/Dockerfile" {
			continue
		}
		workers++
		if len(s.Volumes) != 0 || len(s.Command) != 0 {
			t.Errorf("%s has files or a command besides its image's: %q %q", name, s.Volumes, s.Command)
		}
		for variable := range s.Environment {
			if !slices.Contains([]string{"CONNECT_BOOTSTRAP_SERVERS", "CONNECT_ADVERTISED_HOST", "CONNECT_REPLICATION_FACTOR", "CONNECTOR_DATABASE_URL", "KAFKA_BROKERS", "KAFKA_HEAP_OPTS"}, variable) &&
				!strings.HasPrefix(variable, "CDC_") {
				t.Errorf("%s sets %s, which is no address", name, variable)
			}
		}
	}
	if workers != 2 {
		t.Errorf("%d workers, want one and one of the profile scale", workers)
	}
}

// What outboxctl reads on the host says where the host finds things. It must not reach the containers.
func TestTheHostsAddressesStayOutside(t *testing.T) {
	exported := map[string]string{}
	for _, name := range []string{"KAFKA_BROKERS", "CONNECT_URL", "ADMIN_DATABASE_URL", "CONNECTOR_DATABASE_URL", "DATABASE_URL",
		"ORDER_DATABASE_URL", "STOCK_DATABASE_URL", "PAYMENT_DATABASE_URL", "ORDER_URL", "STOCK_URL", "PAYMENT_URL", "SUPERVISOR_ADDR", "HTTP_ADDR"} {
		exported[name] = "127.0.0.1:1"
	}
	with := compose(t, exported).Services
	for name, s := range compose(t, nil).Services {
		if !maps.Equal(with[name].Environment, s.Environment) {
			t.Errorf("%s has the host's addresses: %v", name, with[name].Environment)
		}
	}
}

// The table of variables in docs/operations.md has all that docker-compose.yaml reads, and no other.
func TestVariablesOfComposeAreListed(t *testing.T) {
	used := map[string]bool{}
	for _, m := range variable.FindAllStringSubmatch(read(t, "docker-compose.yaml"), -1) {
		used[m[1]] = true
	}
	_, section, _ := strings.Cut(read(t, "docs/operations.md"), "\n## Containers\n")
	section, _, _ = strings.Cut(section, "\n## ")
	listed := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\|((?: `[A-Z0-9_]+`)+) \\|").FindAllStringSubmatch(section, -1) {
		for name := range strings.FieldsSeq(row[1]) {
			listed[strings.Trim(name, "`")] = true
		}
	}
	if !maps.Equal(used, listed) {
		t.Errorf("docker-compose.yaml reads\n%q\ndocs/operations.md lists\n%q", slices.Sorted(maps.Keys(used)), slices.Sorted(maps.Keys(listed)))
	}
}

func TestPostgresOfComposeReadsTheSharedFile(t *testing.T) {
	s := compose(t, nil).Services["postgres"]
	if want := "./debezium/postgresql.conf:/etc/postgresql/postgresql.conf:ro"; !slices.Contains(s.Volumes, want) {
		t.Errorf("postgres does not mount %s: %q", want, s.Volumes)
	}
	if want := []string{"postgres", "-c", "config_file=/etc/postgresql/postgresql.conf", "-c", "listen_addresses=*"}; !slices.Equal(s.Command, want) {
		t.Errorf("postgres runs %q, want %q: settings belong into debezium/postgresql.conf", s.Command, want)
	}
}

// Connectors and migrations come into containers in one image, built from the checkout.
func TestOneImageBringsConnectorsAndMigrations(t *testing.T) {
	c := compose(t, nil)
	for name, command := range map[string]string{"provision": "provision", "setup": "connectors register --dir /connectors"} {
		s := c.Services[name]
		if s.Image != "outbox-saga/outboxctl" || s.Build == nil || s.Build.Args["PROGRAM"] != "outboxctl" || len(s.Volumes) != 0 {
			t.Errorf("%s does not run the image of outboxctl alone: %+v", name, s)
		}
		if !strings.HasPrefix(strings.Join(s.Command, " "), command) {
			t.Errorf("%s runs %q, want %s", name, s.Command, command)
		}
	}
	if !strings.Contains(read(t, "Dockerfile"), "\nCOPY connectors /connectors\n") {
		t.Error("the Dockerfile does not copy connectors/")
	}
}

func TestEveryContainerIsConfined(t *testing.T) {
	for name, s := range compose(t, nil).Services {
		if s.MemLimit == "" || !slices.Equal(s.CapDrop, []string{"ALL"}) || !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
			t.Errorf("%s: memory limit %q, drops %q, security %q", name, s.MemLimit, s.CapDrop, s.SecurityOpt)
		}
		if name != "postgres" && (!s.ReadOnly || len(s.CapAdd) != 0) {
			t.Errorf("%s: read-only %t, capabilities %q", name, s.ReadOnly, s.CapAdd)
		}
		if name != "postgres" && name != "kafka-ui" && !regexp.MustCompile(`^[1-9]\d*:[1-9]\d*$`).MatchString(s.User) {
			t.Errorf("%s runs as %q, want an ordinary user and group by number", name, s.User)
		}
		for _, p := range s.Ports {
			if address, _, _, err := port(p); err != nil || address != "127.0.0.1" {
				t.Errorf("%s publishes %s, not on loopback: %v", name, p, err)
			}
		}
		if s.Restart == "unless-stopped" && s.Healthcheck == nil && !checksItself(t, s.Build) && !slices.Contains([]string{"balancer", "kafka-ui"}, name) {
			t.Errorf("%s has no health check", name)
		}
	}
}

// checksItself says whether the image has a health check.
func checksItself(t *testing.T, b *Build) bool {
	if b == nil {
		return false
	}
	stages := regexp.MustCompile(`(?m)^FROM `).Split(read(t, cmp.Or(b.Dockerfile, "Dockerfile")), -1)
	last := stages[len(stages)-1]
	for _, stage := range stages {
		if first, _, _ := strings.Cut(stage, "\n"); b.Target != "" && strings.HasSuffix(first, " AS "+b.Target) {
			last = stage
		}
	}
	return strings.Contains(last, "\nHEALTHCHECK ")
}

// What runs for long gets the time to end by itself, and our programs know the memory they have.
func TestEveryContainerMayEndByItself(t *testing.T) {
	for name, s := range compose(t, nil).Services {
		want := 30 * time.Second
		switch {
		case s.Restart == "" || s.Build == nil && name != "postgres" && !strings.HasPrefix(name, "kafka"), name == "kafka-ui":
			continue
		case s.Build != nil && s.Build.Dockerfile == "": // ours
			want = 20 * time.Second
			limit, err := bytes(s.MemLimit)
			if mebibytes, ok := strings.CutSuffix(s.Environment["GOMEMLIMIT"], "MiB"); err != nil || !ok {
				t.Errorf("%s has the limit %q, and GOMEMLIMIT %q", name, s.MemLimit, s.Environment["GOMEMLIMIT"])
			} else if n, err := strconv.ParseInt(mebibytes, 10, 64); err != nil || n<<20 > limit*9/10 || n<<20 < limit/2 {
				t.Errorf("%s has GOMEMLIMIT %q of %s, want half to nine tenths: %v", name, s.Environment["GOMEMLIMIT"], s.MemLimit, err)
			}
		}
		if s.StopGrace != want {
			t.Errorf("%s has %s to end by itself, want %s", name, s.StopGrace, want)
		}
	}
}

// The native stack resolves its versions from the pom.xml; containers must run the same ones.
func TestVersionsAgree(t *testing.T) {
	pom := read(t, "debezium/pom.xml")
	version := func(of string) string {
		found := regexp.MustCompile(`<` + of + `\.version>(.+)</`).FindStringSubmatch(pom)
		if found == nil {
			t.Fatalf("debezium/pom.xml has no version of %s", of)
		}
		return found[1]
	}
	kafka := "apache/kafka:" + version("kafka")
	major, _, _ := strings.Cut(version("postgres"), ".")
	c := compose(t, nil)
	for name, s := range c.Services {
		switch {
		case strings.HasPrefix(s.Image, "apache/kafka") && s.Image != kafka:
			t.Errorf("%s runs %s, the native stack %s", name, s.Image, kafka)
		case strings.HasPrefix(s.Image, "postgres") && s.Image != "postgres:"+major:
			t.Errorf("%s runs %s, the native stack PostgreSQL %s", name, s.Image, version("postgres"))
		}
	}
	if c.Services["kafka"].Image != kafka || c.Services["postgres"].Image != "postgres:"+major {
		t.Errorf("kafka and postgres run %s and %s", c.Services["kafka"].Image, c.Services["postgres"].Image)
	}
	if !strings.Contains(read(t, "debezium/Dockerfile"), "\nFROM "+kafka+"\n") {
		t.Error("debezium/Dockerfile does not begin with", kafka)
	}
	golang := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(read(t, "go.mod"))
	for _, file := range []string{"Dockerfile", "debezium/Dockerfile"} {
		if !strings.Contains(read(t, file), "FROM golang:"+golang[1]+"-") {
			t.Errorf("%s does not build with Go %s, which go.mod asks for", file, golang[1])
		}
	}
}

// A worker in a container is scheduled as one of the native stack. The script runs here, with a program in place of Connect that says
// what it was given.
func TestWorkersOfComposeAreScheduledAsOthers(t *testing.T) {
	if _, err := os.Stat("/proc/self/timerslack_ns"); err != nil {
		t.Skip("this system has no timer slack:", err)
	}
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "outboxctl"), "./cmd/outboxctl")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for name, text := range map[string]string{
		"worker.properties": "",
		// The 41st field is the policy (proc_pid_stat(5)): 3 is SCHED_BATCH.
		"connect-distributed.sh": "#!/bin/bash\nread -ra stat </proc/self/stat\necho $(tr '\\0' '\\n' </proc/$$/environ | grep -c ^CDC_POLL_INTERVAL_MS=) policy ${stat[40]} slack $(cat /proc/$$/timerslack_ns) interval $CDC_POLL_INTERVAL_MS, $CDC_MAX_BATCH_SIZE at most, $1\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	script := strings.NewReplacer("/opt/connect", dir, "/opt/kafka/bin", dir, "/tmp/", dir+"/").Replace(read(t, "debezium/connect.sh"))
	for _, c := range []struct{ env, want string }{
		{"", "policy 3 slack 8000000 interval 2, 1 at most"},
		{"CDC_POLL_INTERVAL_MS=", "policy 3 slack 8000000 interval 2, 1 at most"},
		{"CDC_POLL_INTERVAL_MS=5", "policy 3 slack 8000000 interval 5, 1 at most"},
		{"CDC_MAX_BATCH_SIZE=2048", "policy 3 slack 8000000 interval 4, 2048 at most"},
		{"CDC_TIMER_SLACK_MS=0", "policy 3 slack 50000 interval 20, 1 at most"},
		{"SCHEDULING_POLICY=other", "policy 0 slack 8000000 interval 2, 1 at most"},
	} {
		cmd := exec.Command("bash", "-c", script)
		cmd.Env = append(os.Environ(), "CONNECT_BOOTSTRAP_SERVERS=kafka:9092", c.env)
		out, err := cmd.CombinedOutput()
		if want := "1 " + c.want + ", " + dir + "/worker.properties\n"; string(out) != want || err != nil {
			t.Errorf("with %q: %q, %v, want %q", c.env, out, err, want)
		}
	}
}

// The dialects: a setting of each file, as any other file would have to write it.
var assigned = map[string]*regexp.Regexp{
	"properties": regexp.MustCompile(`(?m)(?:^|[\s"'` + "`" + `])([a-z][a-z0-9_.]*[a-z0-9])"?\s*[=:]`),
	"variable":   regexp.MustCompile(`(?m)\b(?:KAFKA|CONNECT)_([A-Z0-9_]+)\b`),
}

// elsewhere are the files that may name a setting too, each for its reason.
var elsewhere = map[string]string{
	"docker-compose.yaml":                  "by place: tested above",
	"debezium/connect.sh":                  "by place: tested above",
	"debezium/broker.properties":           "the one copy",
	"debezium/worker.properties":           "the one copy",
	"debezium/log4j2.properties":           "the one copy",
	"debezium/postgresql.conf":             "the one copy",
	"connectors/orderdb.json":              "the one copy for its database",
	"connectors/paymentdb.json":            "the one copy for its database",
	"connectors/stockdb.json":              "the one copy for its database",
	"internal/dockerstack/compose_test.go": "this test",
}

// A file that sets several of the settings of a configuration file is a second copy of it.
func TestThereIsNoSecondCopy(t *testing.T) {
	sets := map[string][]string{}
	for _, file := range []string{"debezium/broker.properties", "debezium/worker.properties", "debezium/postgresql.conf", "debezium/log4j2.properties"} {
		sets[file] = slices.Collect(maps.Keys(properties(t, file)))
	}
	connector := map[string]string{}
	if err := json.Unmarshal([]byte(read(t, "connectors/orderdb.json")), &connector); err != nil {
		t.Fatal(err)
	}
	sets["connectors/*.json"] = slices.Collect(maps.Keys(connector))
	tables := map[string]string{} // name → the migration that makes it
	var others []string
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, file)
		name = filepath.ToSlash(name)
		if d.IsDir() {
			if name != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
				return filepath.SkipDir
			}
			return nil
		}
		if strings.HasSuffix(name, ".up.sql") {
			for _, made := range createTable.FindAllStringSubmatch(read(t, name), -1) {
				table := strings.ToLower(made[1])
				if first, twice := tables[table]; twice {
					t.Errorf("%s and %s both make the table %s", first, name, table)
				}
				tables[table] = name
			}
			return nil
		}
		if strings.HasSuffix(name, ".down.sql") {
			return nil // the way back to an older table makes it again; provision's TestMigrationsGoDown holds it to that
		}
		if !slices.Contains([]string{".md", ".sum", ".mod"}, filepath.Ext(name)) && d.Type().IsRegular() {
			others = append(others, name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(tables) < 8 || len(others) < 100 {
		t.Fatalf("only %d tables and %d files found", len(tables), len(others))
	}
	for _, name := range others {
		text := read(t, name)
		for _, made := range createTable.FindAllStringSubmatch(text, -1) {
			if first, ok := tables[strings.ToLower(made[1])]; ok {
				t.Errorf("%s makes the table %s, which %s makes", name, made[1], first)
			}
		}
		if elsewhere[name] != "" {
			continue
		}
		found := map[string]bool{}
		for _, m := range assigned["properties"].FindAllStringSubmatch(text, -1) {
			found[m[1]] = true
		}
		for _, m := range assigned["variable"].FindAllStringSubmatch(text, -1) {
			found[strings.ToLower(strings.ReplaceAll(m[1], "_", "."))] = true
		}
		for file, keys := range sets {
			var both []string
			for _, key := range keys {
				if found[key] && !slices.Contains(brokerByPlace, key) && !slices.ContainsFunc(workerByPlace, func(end string) bool { return strings.HasSuffix(key, end) }) {
					both = append(both, key)
				}
			}
			if len(both) > 3 { // three are asked for by a check, or set by a test of faults
				slices.Sort(both)
				t.Errorf("%s sets %q as %s does: read that file instead", name, both, file)
			}
		}
	}
}

var createTable = regexp.MustCompile(`(?i)\bCREATE TABLE (?:IF NOT EXISTS )?(?:public\.)?([a-z_]+)\b`)

// The three connectors differ by the name of their database only.
func TestConnectorsDifferByDatabaseOnly(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(root, "connectors", "*.json"))
	if err != nil || len(files) != 3 {
		t.Fatal(files, err)
	}
	var first string
	for _, file := range files {
		database := strings.TrimSuffix(filepath.Base(file), ".json")
		text := strings.ReplaceAll(read(t, "connectors/"+filepath.Base(file)), database, "DATABASE")
		if first == "" {
			first = text
		}
		if text != first {
			t.Errorf("%s differs from %s by more than its database", file, files[0])
		}
	}
}

func TestInterpolate(t *testing.T) {
	env := func(name string) (string, bool) {
		return map[string]string{"A": "1", "EMPTY": ""}[name], name == "A" || name == "EMPTY"
	}
	for text, want := range map[string]string{
		"${A}": "1", "${A:?see B}": "1", "${A:-2}": "1", "${B:-2}": "2", "${B:-}": "", "x${EMPTY:-3}y": "x3y", "127.0.0.1:${B:-5432}:5432": "127.0.0.1:5432:5432", "$A": "$A",
	} {
		if got, err := interpolate(text, env); got != want || err != nil {
			t.Errorf("%s: %q, %v, want %q", text, got, err, want)
		}
	}
	if _, err := interpolate("${B} ${A} ${C:?see .env} ${C:?see .env} ${B}", env); err == nil || !strings.HasSuffix(err.Error(), "for B, C (see .env)") {
		t.Error(err)
	}
}
