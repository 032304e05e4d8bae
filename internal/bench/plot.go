package bench

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// plots are the SVG files that the runs allow, by name.
func (r Report) plots() map[string]string {
	files := map[string]string{}
	if c := r.latencyChart(); len(c.series) > 0 {
		files["latency.svg"] = c.svg()
	}
	if bars := r.cpuBars(); len(bars) > 0 {
		files["cpu.svg"] = stacked("CPU time per order, by process", bars)
	}
	if c := r.growthChart(); len(c.series) > 0 {
		files["growth.svg"] = c.svg()
	}
	return files
}

var colours = []string{"#336791", "#e07b39", "#00a29c", "#9b59b6", "#777777", "#c0392b", "#f1c40f", "#2c3e50"}

// chart draws lines over a few named places, with a logarithmic scale.
type chart struct {
	title, unit string
	places      []string
	series      []series
}

type series struct {
	name, colour string
	dashed       bool
	values       []float64 // by place; NaN: none
}

func (r Report) latencyChart() chart {
	c := chart{title: "Latency to the final state, by orders/s: p50 (solid), p99 (dashed)", unit: "ms"}
	var rates []int
	var systems []string
	for _, g := range r.groups(PartLatency) {
		if g.rate < 10 || g.name != "" {
			continue
		}
		if !slices.Contains(rates, g.rate) {
			rates = append(rates, g.rate)
			c.places = append(c.places, fmt.Sprint(g.rate))
		}
		if !slices.Contains(systems, g.system) {
			systems = append(systems, g.system)
		}
	}
	for i, system := range systems {
		median, tail := []float64{}, []float64{}
		for _, rate := range rates {
			m, t := math.NaN(), math.NaN()
			if g := r.find(PartLatency, system, "", rate); g != nil {
				m, t = g.median(p50), g.median(p99)
			}
			median, tail = append(median, m), append(tail, t)
		}
		colour := colours[i%len(colours)]
		c.series = append(c.series, series{system + " p50", colour, false, median}, series{system + " p99", colour, true, tail})
	}
	return c
}

func (r Report) growthChart() chart {
	c := chart{title: "With orders already there: p99 at 500 orders/s (ms), and highest rate that holds (orders/s)", unit: ""}
	var tail, most []float64
	for _, g := range r.groups(PartGrowth) {
		if g.system != CDC || g.rate != 500 {
			continue
		}
		c.places = append(c.places, g.name)
		tail = append(tail, g.median(p99))
		rate := math.NaN()
		if found := r.Max[Keyed(CDC, g.name)]; found > 0 {
			rate = float64(found)
		}
		most = append(most, rate)
	}
	if len(c.places) > 0 {
		c.series = []series{{"p99 at 500/s, ms", colours[1], false, tail}, {"highest rate", colours[0], false, most}}
	}
	return c
}

// The frame of a plot.
const (
	width, height            = 760, 400
	left, top, right, bottom = 70, 44, 190, 46
)

func frame(title string) *strings.Builder {
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="sans-serif" font-size="12">
<rect width="100%%" height="100%%" fill="white"/>
<text x="%d" y="24" font-size="14" font-weight="bold">%s</text>
`, width, height, width, height, left, html.EscapeString(title))
	return &b
}

func label(b *strings.Builder, x, y float64, anchor, text string) {
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="%s">%s</text>`+"\n", x, y, anchor, html.EscapeString(text))
}

// grid draws the horizontal lines at values, whose heights are given by y.
func grid(b *strings.Builder, values []float64, unit string, y func(float64) float64) {
	for _, v := range values {
		fmt.Fprintf(b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#e0e0e0"/>`+"\n", left, width-right, y(v), y(v))
		label(b, left-8, y(v)+4, "end", strings.TrimSpace(fmt.Sprintf("%g %s", v, unit)))
	}
}

// svg draws the chart. Values that are not above 0 are left out.
func (c chart) svg() string {
	low, high := math.Inf(1), 0.0
	for _, s := range c.series {
		for _, v := range s.values {
			if v > 0 {
				low, high = min(low, v), max(high, v)
			}
		}
	}
	if high == 0 {
		low, high = 1, 10
	}
	from, to := math.Floor(math.Log10(low)), math.Ceil(math.Log10(high))
	if from == to {
		to++
	}
	y := func(v float64) float64 {
		return height - bottom - (math.Log10(v)-from)/(to-from)*(height-bottom-top)
	}
	x := func(i int) float64 {
		return left + (float64(i)+0.5)*float64(width-left-right)/float64(len(c.places))
	}
	b := frame(c.title)
	var lines []float64
	for e := from; e <= to; e++ {
		for _, m := range []float64{1, 2, 5} {
			if v := m * math.Pow(10, e); v <= math.Pow(10, to)*1.001 {
				lines = append(lines, v)
			}
		}
	}
	grid(b, lines, c.unit, y)
	for i, place := range c.places {
		label(b, x(i), height-bottom+18, "middle", place)
	}
	for n, s := range c.series {
		dash := ""
		if s.dashed {
			dash = ` stroke-dasharray="5 4"`
		}
		var points []string
		for i, v := range s.values {
			if v > 0 {
				points = append(points, fmt.Sprintf("%.1f,%.1f", x(i), y(v)))
				fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"><title>%s, %s: %g</title></circle>`+"\n", x(i), y(v), s.colour, html.EscapeString(s.name), html.EscapeString(c.places[i]), v)
			}
		}
		fmt.Fprintf(b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"%s/>`+"\n", strings.Join(points, " "), s.colour, dash)
		at := float64(top + 16*n)
		fmt.Fprintf(b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="%s" stroke-width="2"%s/>`+"\n", width-right+10, width-right+34, at, at, s.colour, dash)
		label(b, width-right+40, at+4, "start", s.name)
	}
	return b.String() + "</svg>\n"
}

// bar is a stacked bar: one value a kind of process.
type bar struct {
	name   string
	values []float64
}

func (r Report) cpuBars() (bars []bar) {
	for _, g := range r.groups(PartLatency) {
		if g = g.held(); g.rate < 100 || g.name != "" || len(g.runs) == 0 {
			continue
		}
		b := bar{name: fmt.Sprintf("%s %d", g.system, g.rate)}
		for _, k := range kinds {
			b.values = append(b.values, g.cpu(k.processes...))
		}
		bars = append(bars, b)
	}
	return bars
}

// stacked draws bars whose values are µs.
func stacked(title string, bars []bar) string {
	high := 0.0
	for _, bar := range bars {
		sum := 0.0
		for _, v := range bar.values {
			sum += v
		}
		high = max(high, sum)
	}
	step := math.Pow(10, math.Floor(math.Log10(max(high, 1))))
	if high/step < 3 {
		step /= 2
	}
	high = max(step, math.Ceil(high/step)*step)
	y := func(v float64) float64 { return height - bottom - v/high*(height-bottom-top) }
	b := frame(title)
	var lines []float64
	for v := 0.0; v <= high*1.001; v += step {
		lines = append(lines, v)
	}
	grid(b, lines, "µs", y)
	each := float64(width-left-right) / float64(len(bars))
	for i, bar := range bars {
		x, sum := left+(float64(i)+0.15)*each, 0.0
		for k, v := range bar.values {
			fmt.Fprintf(b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"><title>%s, %s: %.0f µs</title></rect>`+"\n",
				x, y(sum+v), 0.7*each, y(sum)-y(sum+v), kinds[k].colour, html.EscapeString(bar.name), kinds[k].name, v)
			sum += v
		}
		system, rate, _ := strings.Cut(bar.name, " ")
		label(b, x+0.35*each, height-bottom+16, "middle", system)
		label(b, x+0.35*each, height-bottom+31, "middle", rate)
	}
	for i, k := range kinds {
		at := float64(top + 18*i)
		fmt.Fprintf(b, `<rect x="%d" y="%.1f" width="12" height="12" fill="%s"/>`+"\n", width-right+10, at-8, k.colour)
		label(b, width-right+28, at+2, "start", k.name)
	}
	return b.String() + "</svg>\n"
}
