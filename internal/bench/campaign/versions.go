package campaign

import (
	"encoding/xml"
	"fmt"
	"os"
	"path/filepath"
)

// Versions are those of what the checkout's stack runs.
func Versions(root string) (map[string]string, error) {
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
	return found, nil
}
