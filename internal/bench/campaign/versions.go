package campaign

import (
	"context"
	"encoding/xml"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"outboxsaga/internal/devstack"
)

// Versions are those of what the checkout's stack runs.
func Versions(ctx context.Context, root string) (map[string]string, error) {
	text, err := os.ReadFile(filepath.Join(root, "debezium", "pom.xml"))
	if err != nil {
		return nil, err
	}
	var pom struct {
		Properties struct {
			All []struct {
				XMLName xml.Name
				Value   string `xml:",chardata"`
			} `xml:",any"`
		} `xml:"properties"`
	}
	if err := xml.Unmarshal(text, &pom); err != nil {
		return nil, fmt.Errorf("debezium/pom.xml: %w", err)
	}
	names := map[string]string{"kafka.version": "Kafka", "debezium.version": "Debezium", "postgres.version": "PostgreSQL"}
	found := map[string]string{}
	for _, p := range pom.Properties.All {
		if name := names[p.XMLName.Local]; name != "" {
			found[name] = p.Value
		}
	}
	java, err := devstack.Java(ctx)
	if err != nil {
		return nil, err
	}
	found["JVM"] = jvm(java.Version)
	return found, nil
}

var virtualMachine = regexp.MustCompile(`(?m)^(.* VM) .*\(.*build ([^,)]+)`)

// jvm is the name and the build of a virtual machine, from what java -version prints.
func jvm(text string) string {
	m := virtualMachine.FindStringSubmatch(text)
	if m == nil {
		return strings.TrimSpace(text)
	}
	return m[1] + " " + m[2]
}
