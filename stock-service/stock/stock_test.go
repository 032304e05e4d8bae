package stock_test

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"

	"outboxsaga/events"
	"outboxsaga/stock-service/stock"

	"pgregory.net/rapid"
)

const orderID = "0198c0de-0000-7000-8000-000000000001"

func shelf(items ...stock.Item) func(string) stock.Item {
	return func(sku string) stock.Item {
		for _, i := range items {
			if i.SKU == sku {
				return i
			}
		}
		return stock.Item{}
	}
}

func request(items ...events.Item) events.StockRequested {
	return events.StockRequested{OrderID: orderID, Items: items}
}

func reservation(s stock.Status, reason string, lines stock.Lines) stock.Reservation {
	return stock.Reservation{OrderID: orderID, Status: s, Reason: reason, Lines: lines}
}

func TestReserve(t *testing.T) {
	book, pen := stock.Item{SKU: "book", Available: 5, Reserved: 1, Received: 6}, stock.Item{SKU: "pen", Available: 1, Received: 1}
	for name, c := range map[string]struct {
		was   stock.Reservation
		items []events.Item
		want  stock.Reservation
		moved []stock.Item
		send  events.Message
	}{
		"enough": {
			items: []events.Item{{SKU: "book", Quantity: 5}},
			want:  reservation(stock.Reserved, "", `[{"sku":"book","quantity":5}]`),
			moved: []stock.Item{{SKU: "book", Available: 0, Reserved: 6, Received: 6}},
			send:  events.StockSuccess(orderID),
		},
		"lines of one SKU add up, sorted": {
			items: []events.Item{{SKU: "pen", Quantity: 1}, {SKU: "book", Quantity: 2}, {SKU: "book", Quantity: 2}},
			want:  reservation(stock.Reserved, "", `[{"sku":"book","quantity":4},{"sku":"pen","quantity":1}]`),
			moved: []stock.Item{{SKU: "book", Available: 1, Reserved: 5, Received: 6}, {SKU: "pen", Reserved: 1, Received: 1}},
			send:  events.StockSuccess(orderID),
		},
		"each line suffices, the sum does not": {
			items: []events.Item{{SKU: "book", Quantity: 3}, {SKU: "book", Quantity: 3}},
			want:  reservation(stock.Refused, "insufficient_stock", `[{"sku":"book","quantity":6}]`),
			send:  events.StockRefusal(orderID, "insufficient_stock"),
		},
		"a sum beyond int64": {
			items: []events.Item{{SKU: "book", Quantity: math.MaxInt64}, {SKU: "book", Quantity: math.MaxInt64}},
			want:  reservation(stock.Refused, "insufficient_stock", `[{"sku":"book","quantity":9223372036854775807}]`),
			send:  events.StockRefusal(orderID, "insufficient_stock"),
		},
		"all or nothing": {
			items: []events.Item{{SKU: "book", Quantity: 1}, {SKU: "pen", Quantity: 2}},
			want:  reservation(stock.Refused, "insufficient_stock", `[{"sku":"book","quantity":1},{"sku":"pen","quantity":2}]`),
			send:  events.StockRefusal(orderID, "insufficient_stock"),
		},
		"unknown item, and that says more than too little of another": {
			items: []events.Item{{SKU: "book", Quantity: 9}, {SKU: "car", Quantity: 1}},
			want:  reservation(stock.Refused, "unknown_item", `[{"sku":"book","quantity":9},{"sku":"car","quantity":1}]`),
			send:  events.StockRefusal(orderID, "unknown_item"),
		},
		"repeated while reserved": {
			was:   reservation(stock.Reserved, "", `[{"sku":"book","quantity":1}]`),
			items: []events.Item{{SKU: "book", Quantity: 1}},
			want:  reservation(stock.Reserved, "", `[{"sku":"book","quantity":1}]`),
			send:  events.StockSuccess(orderID),
		},
		"repeated with other content": {
			was:   reservation(stock.Reserved, "", `[{"sku":"book","quantity":1}]`),
			items: []events.Item{{SKU: "car", Quantity: 7}},
			want:  reservation(stock.Reserved, "", `[{"sku":"book","quantity":1}]`),
			send:  events.StockSuccess(orderID),
		},
		"repeated after a refusal, though there is enough now": {
			was:   reservation(stock.Refused, "unknown_item", `[{"sku":"book","quantity":1}]`),
			items: []events.Item{{SKU: "book", Quantity: 1}},
			want:  reservation(stock.Refused, "unknown_item", `[{"sku":"book","quantity":1}]`),
			send:  events.StockRefusal(orderID, "unknown_item"),
		},
		"repeated after the release": {
			was:   reservation(stock.Released, "", `[{"sku":"book","quantity":1}]`),
			items: []events.Item{{SKU: "book", Quantity: 1}},
			want:  reservation(stock.Released, "", `[{"sku":"book","quantity":1}]`),
			send:  events.StockRefusal(orderID, "compensated"),
		},
		"after its compensation": {
			was:   reservation(stock.Barred, "", stock.NoLines),
			items: []events.Item{{SKU: "book", Quantity: 1}},
			want:  reservation(stock.Barred, "", stock.NoLines),
			send:  events.StockRefusal(orderID, "compensated"),
		},
	} {
		t.Run(name, func(t *testing.T) {
			given := slices.Clone(c.items)
			d, err := stock.Reserve(c.was, shelf(book, pen), request(c.items...))
			if err != nil {
				t.Fatal(err)
			}
			if d.Reservation != c.want || !slices.Equal(d.Items, c.moved) || !slices.Equal(d.Send, []events.Message{c.send}) {
				t.Errorf("got  %+v\nwant %+v %+v %+v", d, c.want, c.moved, c.send)
			}
			if !slices.Equal(given, c.items) {
				t.Error("the command was changed")
			}
		})
	}
}

func TestRelease(t *testing.T) {
	lines := stock.Lines(`[{"sku":"book","quantity":2},{"sku":"pen","quantity":1}]`)
	book, pen := stock.Item{SKU: "book", Available: 5, Reserved: 3, Received: 8}, stock.Item{SKU: "pen", Reserved: 1, Received: 1}
	for name, c := range map[string]struct {
		was, want stock.Reservation
		moved     []stock.Item
		outcome   string
	}{
		"reserved": {
			was: reservation(stock.Reserved, "", lines), want: reservation(stock.Released, "", lines),
			moved:   []stock.Item{{SKU: "book", Available: 7, Reserved: 1, Received: 8}, {SKU: "pen", Available: 1, Received: 1}},
			outcome: "released",
		},
		"released before": {was: reservation(stock.Released, "", lines), want: reservation(stock.Released, "", lines), outcome: "released"},
		"refused": {
			was: reservation(stock.Refused, "unknown_item", lines), want: reservation(stock.Refused, "unknown_item", lines),
			outcome: "nothing_to_release",
		},
		"before its command": {want: reservation(stock.Barred, "", stock.NoLines), outcome: "nothing_to_release"},
		"barred before": {
			was: reservation(stock.Barred, "", stock.NoLines), want: reservation(stock.Barred, "", stock.NoLines),
			outcome: "nothing_to_release",
		},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := stock.Release(c.was, shelf(book, pen), orderID)
			if err != nil {
				t.Fatal(err)
			}
			want := []events.Message{events.StockCompensation(orderID, c.outcome)}
			if d.Reservation != c.want || !slices.Equal(d.Items, c.moved) || !slices.Equal(d.Send, want) {
				t.Errorf("got  %+v\nwant %+v %+v %+v", d, c.want, c.moved, want)
			}
		})
	}
}

func TestReleaseRefusesToInventGoods(t *testing.T) {
	_, err := stock.Release(reservation(stock.Reserved, "", `[{"sku":"book","quantity":2}]`), shelf(stock.Item{SKU: "book", Reserved: 1, Received: 1}), orderID)
	if err == nil {
		t.Error("more was released than is reserved")
	}
	if _, err := stock.Release(reservation(stock.Reserved, "", `oops`), shelf(), orderID); err == nil {
		t.Error("damaged lines were released")
	}
}

func TestImpossibleCommands(t *testing.T) {
	for name, items := range map[string][]events.Item{
		"no items":          nil,
		"zero":              {{SKU: "book"}},
		"negative":          {{SKU: "book", Quantity: -1}},
		"one line negative": {{SKU: "book", Quantity: 5}, {SKU: "book", Quantity: -1}},
		"no SKU":            {{Quantity: 1}},
		"NUL":               {{SKU: "a\x00", Quantity: 1}},
		"blank":             {{SKU: "a b", Quantity: 1}},
		"long":              {{SKU: strings.Repeat("x", 101), Quantity: 1}},
	} {
		if err := stock.Validate(request(items...)); err == nil {
			t.Errorf("%s: valid", name)
		}
		if d, err := stock.Reserve(stock.Reservation{}, shelf(), request(items...)); err == nil {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

func TestReceive(t *testing.T) {
	i, err := stock.Receive(stock.Item{}, "book", 3)
	if err != nil || i != (stock.Item{SKU: "book", Available: 3, Received: 3}) {
		t.Error(i, err)
	}
	i, err = stock.Receive(stock.Item{SKU: "book", Available: 1, Reserved: 2, Received: 3}, "book", 4)
	if err != nil || i != (stock.Item{SKU: "book", Available: 5, Reserved: 2, Received: 7}) {
		t.Error(i, err)
	}
	for _, q := range []int64{0, -1, math.MinInt64, stock.MaxReceived + 1, math.MaxInt64} {
		if _, err := stock.Receive(stock.Item{}, "book", q); err == nil {
			t.Errorf("%d was received", q)
		}
	}
	full := stock.Item{SKU: "book", Available: stock.MaxReceived, Received: stock.MaxReceived}
	if _, err := stock.Receive(full, "book", 1); err == nil {
		t.Error("an item received more than its bound")
	}
}

// Any sequence of receipts, commands and compensations, repeated and out of order, keeps
// the goods, and each order has the effect that its reservation says.
func TestGoodsAreConserved(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		items, reservations := map[string]stock.Item{}, map[string]stock.Reservation{}
		said := map[string]map[string]bool{} // order → topics that it was answered on
		get := func(sku string) stock.Item { return items[sku] }
		apply := func(id string, d stock.Decision, err error) {
			if err != nil {
				t.Fatal(err)
			}
			was := reservations[id]
			if was == d.Reservation && len(d.Items) > 0 {
				t.Fatalf("an effect without a new state: %+v", d)
			}
			if final := was.Status == stock.Refused || was.Status == stock.Released || was.Status == stock.Barred; final && was != d.Reservation {
				t.Fatalf("a final state changed: %+v → %+v", was, d.Reservation)
			}
			reservations[id] = d.Reservation
			for _, i := range d.Items {
				items[i.SKU] = i
			}
			if said[id] == nil {
				said[id] = map[string]bool{}
			}
			for _, m := range d.Send {
				said[id][m.Topic] = true
			}
		}
		skus := rapid.SampledFrom([]string{"a", "b", "c"})
		orders := rapid.SampledFrom([]string{"o1", "o2", "o3"})
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			id := orders.Draw(t, "order")
			switch rapid.IntRange(0, 2).Draw(t, "action") {
			case 0:
				sku := skus.Draw(t, "sku")
				i, err := stock.Receive(items[sku], sku, rapid.Int64Range(1, 5).Draw(t, "quantity"))
				if err != nil {
					t.Fatal(err)
				}
				items[sku] = i
			case 1:
				cmd := events.StockRequested{OrderID: id}
				for range rapid.IntRange(1, 3).Draw(t, "lines") {
					cmd.Items = append(cmd.Items, events.Item{SKU: skus.Draw(t, "sku"), Quantity: rapid.Int64Range(1, 4).Draw(t, "quantity")})
				}
				d, err := stock.Reserve(reservations[id], get, cmd)
				apply(id, d, err)
			case 2:
				d, err := stock.Release(reservations[id], get, id)
				apply(id, d, err)
			}
			held := map[string]int64{}
			for id, r := range reservations {
				if r.Status != stock.Reserved {
					continue
				}
				if said[id][events.TopicStockFailed] || said[id][events.TopicStockCompensated] {
					t.Fatalf("order %s holds goods and was told otherwise", id)
				}
				lines, err := r.Lines.Items()
				if err != nil {
					t.Fatal(err)
				}
				for _, l := range lines {
					held[l.SKU] += l.Quantity
				}
			}
			for _, sku := range slices.Sorted(maps.Keys(items)) {
				i := items[sku]
				if i.Available < 0 || i.Reserved < 0 || i.Received != i.Available+i.Reserved || i.Reserved != held[sku] {
					t.Fatal(fmt.Sprintf("%+v, held %d", i, held[sku]))
				}
			}
		}
	})
}
