package dockerstack

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

// Compose is docker-compose.yaml, as far as this package runs it and tests look at it.
type Compose struct {
	Services map[string]Service `yaml:"services"`
	Volumes  map[string]any     `yaml:"volumes"`
}

// Service is one of its services.
type Service struct {
	Image       string            `yaml:"image"`
	Build       *Build            `yaml:"build"`
	Command     []string          `yaml:"command"`
	Entrypoint  []string          `yaml:"entrypoint"`
	User        string            `yaml:"user"`
	Environment map[string]string `yaml:"environment"`
	Volumes     []string          `yaml:"volumes"`
	Tmpfs       []string          `yaml:"tmpfs"`
	Ports       []string          `yaml:"ports"`
	Profiles    []string          `yaml:"profiles"`
	Restart     string            `yaml:"restart"`
	ReadOnly    bool              `yaml:"read_only"`
	CapDrop     []string          `yaml:"cap_drop"`
	CapAdd      []string          `yaml:"cap_add"`
	SecurityOpt []string          `yaml:"security_opt"`
	MemLimit    string            `yaml:"mem_limit"`
	StopGrace   time.Duration     `yaml:"stop_grace_period"`
	ShmSize     string            `yaml:"shm_size"`
	Healthcheck map[string]any    `yaml:"healthcheck"`
}

// Build says how an image is built.
type Build struct {
	Context    string            `yaml:"context"`
	Dockerfile string            `yaml:"dockerfile"`
	Target     string            `yaml:"target"`
	Args       map[string]string `yaml:"args"`
}

// ReadCompose reads the checkout's docker-compose.yaml. env gives the variables in it; one that
// it does not give and that has no default is an error.
func ReadCompose(root string, env func(name string) (string, bool)) (Compose, error) {
	var c Compose
	file := filepath.Join(root, "docker-compose.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		return c, fmt.Errorf("the checkout is not complete: %w", err)
	}
	filled, err := interpolate(string(text), env)
	if err != nil {
		return c, fmt.Errorf("%s: %w", file, err)
	}
	if err := yaml.Unmarshal([]byte(filled), &c); err != nil {
		return c, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}

var variable = regexp.MustCompile(`\$\{([A-Z_][A-Z0-9_]*)(?:(:[-?])([^}]*))?\}`)

// interpolate replaces ${NAME}, ${NAME:-default} and ${NAME:?what to do where it is not set}.
func interpolate(text string, env func(string) (string, bool)) (string, error) {
	var missing []string
	text = variable.ReplaceAllStringFunc(text, func(found string) string {
		part := variable.FindStringSubmatch(found)
		if value, ok := env(part[1]); ok && value != "" {
			return value
		}
		if part[2] == ":-" {
			return part[3]
		}
		what := part[1]
		if part[3] != "" {
			what += " (" + part[3] + ")"
		}
		if !slices.Contains(missing, what) {
			missing = append(missing, what)
		}
		return ""
	})
	if missing != nil {
		return "", fmt.Errorf("no value for %s", strings.Join(missing, ", "))
	}
	return text, nil
}

// bytes reads a size such as 256m. An empty one is 0, no limit.
func bytes(size string) (int64, error) {
	if size == "" {
		return 0, nil
	}
	unit := map[byte]int64{'k': 1 << 10, 'm': 1 << 20, 'g': 1 << 30}[size[len(size)-1]]
	n, err := strconv.ParseInt(size[:len(size)-1], 10, 64)
	if unit == 0 || err != nil {
		return 0, fmt.Errorf("size %q: want a number and k, m or g", size)
	}
	return n * unit, nil
}

// port splits a published port, ADDRESS:PORT:CONTAINER-PORT.
func port(published string) (address, host, container string, err error) {
	part := strings.Split(published, ":")
	if len(part) != 3 {
		return "", "", "", fmt.Errorf("port %q: want address:port:port", published)
	}
	return part[0], part[1], part[2], nil
}
