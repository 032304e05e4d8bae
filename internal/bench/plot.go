package bench

import (
	"fmt"
	"html"
	"maps"
	"math"
	"slices"
	"strings"
)

// A plot is an SVG of this size, with room for its axes.
const (
	plotWidth, plotHeight    = 760, 420
	left, right, top, bottom = 60, 190, 40, 50
	innerWidth, innerHeight  = plotWidth - left - right, plotHeight - top - bottom
)

var colours = []string{"#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf"}

// canvas is an SVG in the making.
type canvas struct{ strings.Builder }

func newCanvas(title, xLabel, yLabel string) *canvas {
	c := &canvas{}
	fmt.Fprintf(c, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", plotWidth, plotHeight)
	fmt.Fprintf(c, `<rect width="%d" height="%d" fill="white"/>`+"\n", plotWidth, plotHeight)
	c.text(left, 22, "start", title)
	c.text(left+innerWidth/2, plotHeight-12, "middle", xLabel)
	fmt.Fprintf(c, `<text transform="translate(16 %d) rotate(-90)" text-anchor="middle">%s</text>`+"\n", top+innerHeight/2, html.EscapeString(yLabel))
	fmt.Fprintf(c, `<path d="M%d %dV%dH%d" fill="none" stroke="black"/>`+"\n", left, top, top+innerHeight, left+innerWidth)
	return c
}

func (c *canvas) text(x, y float64, anchor, text string) {
	fmt.Fprintf(c, `<text x="%.1f" y="%.1f" text-anchor="%s">%s</text>`+"\n", x, y, anchor, html.EscapeString(text))
}

func (c *canvas) tickX(x float64, text string) {
	fmt.Fprintf(c, `<path d="M%.1f %dv5" stroke="black"/>`+"\n", x, top+innerHeight)
	c.text(x, top+innerHeight+18, "middle", text)
}

func (c *canvas) tickY(y float64, text string) {
	fmt.Fprintf(c, `<path d="M%d %.1fh%d" stroke="#dddddd"/>`+"\n", left, y, innerWidth)
	c.text(left-6, y+4, "end", text)
}

func (c *canvas) legend(i int, colour, text string) {
	y := float64(top + 10 + 18*i)
	fmt.Fprintf(c, `<rect x="%d" y="%.1f" width="12" height="12" fill="%s"/>`+"\n", left+innerWidth+15, y-10, colour)
	c.text(left+innerWidth+32, y, "start", text)
}

func (c *canvas) end() string {
	c.WriteString("</svg>\n")
	return c.String()
}

// systems are those with runs, in the order in which they were measured.
func (r Report) systems() (names []string) {
	for _, p := range r.Runs {
		if !slices.Contains(names, p.System) {
			names = append(names, p.System)
		}
	}
	return names
}

// LatencyPlot shows p50 and p99 to the final state by rate, both axes logarithmic. Points that do not hold
// are left out.
func (r Report) LatencyPlot() string {
	c := newCanvas("From the intended send to the final state: p50 (solid), p99 (dashed)", "orders/s", "ms")
	lowX, highX, lowY, highY := 100.0, 1000.0, 1.0, 10.0
	var shown []group
	for _, g := range r.groups() {
		if g.rate < 10 || !slices.ContainsFunc(g.runs, Point.Holds) {
			continue
		}
		shown = append(shown, g)
		lowX, highX = min(lowX, float64(g.rate)), max(highX, float64(g.rate))
		highY = max(highY, g.median(func(p Point) float64 { return p.P99 }))
	}
	highY = math.Pow(10, math.Ceil(math.Log10(highY)))
	x := func(rate float64) float64 { return left + innerWidth*math.Log(rate/lowX)/math.Log(highX/lowX) }
	y := func(ms float64) float64 {
		return top + innerHeight - innerHeight*math.Log(max(ms, lowY)/lowY)/math.Log(highY/lowY)
	}
	for _, rate := range []float64{10, 20, 50, 100, 200, 500, 1000, 2000, 4000, 8000, 16000} {
		if rate >= lowX && rate <= highX {
			c.tickX(x(rate), fmt.Sprint(rate))
		}
	}
	for ms := lowY; ms <= highY; ms *= 10 {
		c.tickY(y(ms), fmt.Sprint(ms))
	}
	for i, system := range r.systems() {
		colour := colours[i%len(colours)]
		c.legend(i, colour, system)
		for dash, f := range map[string]func(Point) float64{"": func(p Point) float64 { return p.P50 }, "5 4": func(p Point) float64 { return p.P99 }} {
			var points []string
			for _, g := range shown {
				if g.system == system {
					points = append(points, fmt.Sprintf("%.1f,%.1f", x(float64(g.rate)), y(g.median(f))))
				}
			}
			fmt.Fprintf(c, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2" stroke-dasharray="%s"/>`+"\n", strings.Join(points, " "), colour, dash)
		}
	}
	return c.end()
}

// CPUPlot shows the CPU time of an order by process, stacked, for each system and rate.
func (r Report) CPUPlot() string {
	c := newCanvas("CPU time of an order by process", "orders/s", "µs")
	var shown []group
	highest := 1.0
	processes := map[string]bool{}
	for _, g := range r.groups() {
		if g.rate < 10 {
			continue
		}
		sum := 0.0
		for name := range g.runs[0].CPU {
			if name != loadGenerator {
				processes[name] = true
				sum += g.median(func(p Point) float64 { return p.CPU[name] })
			}
		}
		highest = max(highest, sum)
		shown = append(shown, g)
	}
	names := slices.Sorted(maps.Keys(processes))
	step := math.Pow(10, math.Floor(math.Log10(highest)))
	highest = math.Ceil(highest/step) * step
	for v := 0.0; v <= highest; v += step {
		c.tickY(top+innerHeight-innerHeight*v/highest, fmt.Sprint(v))
	}
	wide := innerWidth / float64(max(len(shown), 1))
	for i, g := range shown {
		x, y := left+wide*float64(i), float64(top+innerHeight)
		for k, name := range names {
			tall := innerHeight * g.median(func(p Point) float64 { return p.CPU[name] }) / highest
			y -= tall
			fmt.Fprintf(c, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"/>`+"\n", x+wide*0.1, y, wide*0.8, tall, colours[k%len(colours)])
		}
		fmt.Fprintf(c, `<text transform="translate(%.1f %d) rotate(20)" font-size="9">%s %d</text>`+"\n", x+wide*0.1, top+innerHeight+12, html.EscapeString(g.system), g.rate)
	}
	for k, name := range names {
		c.legend(k, colours[k%len(colours)], name)
	}
	return c.end()
}
