package service

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// Health is more than readiness: a consumer that has lost Kafka is no reason to send requests elsewhere,
// but it is one to look at.
func TestHealthcheckWantsAllChecks(t *testing.T) {
	status, body := http.StatusOK, ""
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}))
	defer server.Close()
	addr := strings.TrimPrefix(server.URL, "http://")
	for _, c := range []struct {
		status int
		body   string
		ok     bool
	}{
		{200, `{"ready":true,"checks":{"consumer":"ok","database":"ok"}}`, true},
		{200, `{"ready":true,"checks":{"consumer":"no broker answers","database":"ok"}}`, false},
		{503, `{"ready":false,"checks":{"consumer":"ok","database":"gone"}}`, false},
		{200, `hello`, false},
	} {
		status, body = c.status, c.body
		if err := healthcheck(t.Context(), addr); (err == nil) != c.ok {
			t.Errorf("%d %s: %v", c.status, c.body, err)
		}
	}
}
