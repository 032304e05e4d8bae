package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"outboxsaga/internal/system"

	"github.com/spf13/cobra"
)

func newDemoCommand() *cobra.Command {
	var goods, orders bool
	c := &cobra.Command{
		Use: "demo", Short: "Put goods and money in, place four orders, show what happens", Args: cobra.NoArgs,
		Example: "  outboxctl demo\n  outboxctl demo --orders=false    goods and money only",
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), 90*time.Second)
			defer cancel()
			base, err := localServices()
			if err == nil && goods {
				err = putGoodsIn(ctx, cmd.OutOrStdout(), base)
			}
			if err == nil && orders {
				err = placeOrders(ctx, cmd.OutOrStdout(), base)
			}
			return err
		},
	}
	c.Flags().BoolVar(&goods, "goods", true, "put goods and money in")
	c.Flags().BoolVar(&orders, "orders", true, "place the four orders")
	return c
}

// placed is what the demo shows of an order.
type placed struct {
	ID      string `json:"id"`
	Status  string `json:"status"`
	Reason  string `json:"failure_reason"`
	Settled bool   `json:"settled"`
	Payment struct {
		Status string `json:"status"`
	} `json:"payment"`
	Stock struct {
		Status string `json:"status"`
	} `json:"stock"`
}

// localServices are the addresses of the services on this machine, by name.
func localServices() (map[string]string, error) {
	base := map[string]string{}
	for _, s := range system.Services() {
		p, err := port(s.PortVariable, s.DefaultPort)
		if err != nil {
			return nil, err
		}
		base[s.Name] = fmt.Sprintf("http://127.0.0.1:%d", p)
	}
	return base, nil
}

// putGoodsIn gives the demo's items and accounts what its orders need.
func putGoodsIn(ctx context.Context, out io.Writer, base map[string]string) error {
	fmt.Fprintln(out, "goods and money: 100 books, 1 lamp; alice has 1,000,000, bob has 10")
	for path, body := range map[string]string{
		base["stock-service"] + "/items/book/receipts":       `{"quantity":100}`,
		base["stock-service"] + "/items/lamp/receipts":       `{"quantity":1}`,
		base["payment-service"] + "/accounts/alice/deposits": `{"amount":1000000}`,
		base["payment-service"] + "/accounts/bob/deposits":   `{"amount":10}`,
	} {
		if err := call(ctx, http.MethodPost, path, body, nil); err != nil {
			return err
		}
	}
	return nil
}

// placeOrders places the demo's orders, one after the other, and shows what became of each.
func placeOrders(ctx context.Context, out io.Writer, base map[string]string) error {
	fmt.Fprintf(out, "%-38s %-38s %-8s %-12s %-12s %s\n", "what", "order", "status", "payment", "stock", "after")
	for _, o := range []struct{ what, body string }{
		{"alice buys 2 books", `{"customer_id":"alice","items":[{"sku":"book","quantity":2,"unit_price":1500}]}`},
		{"bob cannot pay: the books go back", `{"customer_id":"bob","items":[{"sku":"book","quantity":3,"unit_price":1500}]}`},
		{"too few lamps: alice is refunded", `{"customer_id":"alice","items":[{"sku":"lamp","quantity":9999,"unit_price":50}]}`},
		{"bob can pay for nothing we have", `{"customer_id":"bob","items":[{"sku":"unicorn","quantity":1,"unit_price":99999}]}`},
	} {
		var order placed
		begin := time.Now()
		if err := call(ctx, http.MethodPost, base["order-service"]+"/orders", o.body, &order); err != nil {
			return err
		}
		for !order.Settled {
			select {
			case <-ctx.Done():
				return fmt.Errorf("order %s is not settled: look at its state with curl %s/orders/%s and at the logs: %w", order.ID, base["order-service"], order.ID, ctx.Err())
			case <-time.After(2 * time.Millisecond):
			}
			if err := call(ctx, http.MethodGet, base["order-service"]+"/orders/"+order.ID, "", &order); err != nil {
				return err
			}
		}
		fmt.Fprintf(out, "%-38s %-38s %-8s %-12s %-12s %d ms\n", o.what, order.ID, order.Status, order.Payment.Status, order.Stock.Status, time.Since(begin).Milliseconds())
	}
	return nil
}

// call sends a JSON request and decodes the answer into out, if that is not nil.
func call(ctx context.Context, method, url, body string, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader([]byte(body)))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("the service does not answer, start the system with scripts/up.sh: %w", err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, url, err)
	}
	if res.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s: %s", method, url, res.Status, bytes.TrimSpace(text))
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(text, out); err != nil {
		return fmt.Errorf("%s %s: the answer is not understood: %w", method, url, err)
	}
	return nil
}
