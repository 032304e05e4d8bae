package service

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
)

//go:embed openapi.json
var sharedOpenAPI []byte

// openAPI is the description of a service's whole API: the routes that all services have,
// with the domain's own added.
type openAPI struct {
	OpenAPI    string                     `json:"openapi"`
	Info       map[string]string          `json:"info"`
	Paths      map[string]json.RawMessage `json:"paths"`
	Components struct {
		Schemas    map[string]json.RawMessage `json:"schemas"`
		Parameters json.RawMessage            `json:"parameters,omitempty"`
		Responses  json.RawMessage            `json:"responses,omitempty"`
	} `json:"components"`
}

// describe makes the document that GET /openapi.json answers.
func describe(domain []byte) (openAPI, error) {
	var all, own openAPI
	if err := json.Unmarshal(sharedOpenAPI, &all); err != nil {
		return all, fmt.Errorf("openapi.json of all services: %w", err)
	}
	if len(domain) == 0 {
		return all, nil
	}
	if err := json.Unmarshal(domain, &own); err != nil {
		return all, fmt.Errorf("openapi.json of the domain: %w", err)
	}
	maps.Copy(all.Info, own.Info)
	maps.Copy(all.Paths, own.Paths)
	maps.Copy(all.Components.Schemas, own.Components.Schemas)
	return all, nil
}

func (a openAPI) serve(w http.ResponseWriter, _ *http.Request) error {
	return WriteJSON(w, http.StatusOK, a)
}
