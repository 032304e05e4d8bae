package bench

import (
	"fmt"
	"time"

	"github.com/valyala/fasthttp"
)

// client is a fast HTTP client: the load generator shares the machine with what it measures.
type client struct{ fasthttp.Client }

func newClient(connections int) *client {
	return &client{fasthttp.Client{
		Name: "bench", MaxConnsPerHost: connections, ReadTimeout: 30 * time.Second, WriteTimeout: 30 * time.Second,
		NoDefaultUserAgentHeader: true, MaxIdleConnDuration: time.Minute,
	}}
}

// post sends JSON and gives the answer to read, which must not keep it. read may be nil.
func (c *client) post(url string, body []byte, want int, read func(*fasthttp.Response) error) error {
	req, res := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
	defer fasthttp.ReleaseRequest(req)
	defer fasthttp.ReleaseResponse(res)
	req.Header.SetMethod(fasthttp.MethodPost)
	req.Header.SetContentType("application/json")
	req.SetRequestURI(url)
	req.SetBodyRaw(body)
	if err := c.Do(req, res); err != nil {
		return fmt.Errorf("POST %s: %w", url, err)
	}
	if res.StatusCode() != want {
		return fmt.Errorf("POST %s: %d: %.200s", url, res.StatusCode(), res.Body())
	}
	if read == nil {
		return nil
	}
	return read(res)
}
