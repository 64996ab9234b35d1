// Bench measures the service against two others: the floor (bench/floor), the least that a session service could do,
// and noop (bench/noop), the most that net/http gives. Service and floor write to the same redis-server here.
// The results are bench/results.md and bench/chart.svg. From the root of the repository, with redis-server and wrk
// (Debian's packages) on the PATH:
//
//	go run ./bench          all of it, some 6 minutes
//	go run ./bench -short   one round of a second each, to see that it works
//
// All take turns within each round, since the machine's speed drifts; the figures are medians over the rounds, and of
// one run.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

var connections = []int{1, 16, 64, 256, 1024}

func main() {
	short := flag.Bool("short", false, "one round of a second each")
	flag.Parse()
	rounds, seconds := 7, 2
	if *short {
		rounds, seconds = 1, 1
	}
	b, err := start()
	if err == nil {
		err = b.run(rounds, seconds, *short)
	}
	b.stop()
	if err != nil {
		log.Fatal(err)
	}
}

const usualBody = `{ "cancel_uri": "https://acme.com/cancel", "end_user_id": "eu_2yRHN2ag2y4p8kCtm5DOeccZEXB", ` +
	`"institution_id": "10", "redirect_uri": "https://acme.com/success" }`

var longBody = strings.NewReplacer(
	"https://acme.com/cancel", "https://acme.com/cancel?state="+strings.Repeat("c", 2000),
	"https://acme.com/success", "https://acme.com/success?state="+strings.Repeat("s", 2000),
).Replace(usualBody)

// sample is one run of wrk; times in microseconds.
type sample struct {
	rate, p50, p99       float64
	cpu, redisCPU, rssMB float64 // cpu a request
}

// load is what wrk sends to each program, and how often.
type load struct {
	rounds, seconds, connections int
	body                         string
	keep                         bool // the sessions that are in Redis, from round to round
}

func (b *bench) wrk(p *program, l load) (sample, error) {
	script := filepath.Join(b.dir, "wrk.lua")
	lua := fmt.Sprintf(`wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer %s"
wrk.body = %q
done = function(summary, latency)
  local e = summary.errors
  print(string.format("RESULT %%d %%d %%d %%d %%d", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), e.status + e.connect + e.read + e.write + e.timeout))
end
`, p.token, l.body)
	if err := os.WriteFile(script, []byte(lua), 0o600); err != nil {
		return sample{}, err
	}
	cpu, redisCPU := p.cpu(), p.redisCPU()
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(l.seconds+30)*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "wrk", "-t1", "-c", strconv.Itoa(l.connections),
		"-d", strconv.Itoa(l.seconds)+"s", "-s", script, "http://"+p.addr+"/auth/session").CombinedOutput()
	if err != nil {
		return sample{}, fmt.Errorf("wrk: %v: %s", err, out)
	}
	cpu, redisCPU = p.cpu()-cpu, p.redisCPU()-redisCPU
	var requests, micros, p50, p99, failed float64
	_, after, _ := strings.Cut(string(out), "RESULT ")
	if _, err := fmt.Sscan(after, &requests, &micros, &p50, &p99, &failed); err != nil || failed > 0 || requests == 0 {
		return sample{}, fmt.Errorf("wrk: %v failed requests: %s", failed, out)
	}
	return sample{
		rate: requests / micros * 1e6, p50: p50, p99: p99,
		cpu: float64(cpu.Microseconds()) / requests, redisCPU: float64(redisCPU.Microseconds()) / requests, rssMB: p.rss(),
	}, nil
}

// compare runs the programs in turns. It returns each one's medians, and those of the first one's ratios to it within
// the rounds.
func (b *bench) compare(l load, programs ...*program) (medians, ratios []sample, err error) {
	samples, over := make([][]sample, len(programs)), make([][]sample, len(programs))
	for round := range l.rounds {
		for _, s := range programs[0].redis {
			if l.keep {
				break
			}
			if err := s.client.FlushAll(context.Background()).Err(); err != nil {
				return nil, nil, err
			}
		}
		for i := range programs {
			i = (i + round) % len(programs)
			s, err := b.wrk(programs[i], l)
			if err != nil {
				return nil, nil, err
			}
			samples[i] = append(samples[i], s)
		}
		for i := range programs {
			a, b := samples[0][round], samples[i][round]
			over[i] = append(over[i], sample{a.rate / b.rate, a.p50 / b.p50, a.p99 / b.p99,
				a.cpu / b.cpu, a.redisCPU / b.redisCPU, a.rssMB / b.rssMB})
		}
	}
	for i := range programs {
		medians, ratios = append(medians, median(samples[i])), append(ratios, median(over[i]))
	}
	return medians, ratios, nil
}

func median(samples []sample) sample {
	of := func(f func(sample) float64) float64 {
		var values []float64
		for _, s := range samples {
			values = append(values, f(s))
		}
		slices.Sort(values)
		return values[len(values)/2]
	}
	return sample{
		of(func(s sample) float64 { return s.rate }),
		of(func(s sample) float64 { return s.p50 }),
		of(func(s sample) float64 { return s.p99 }),
		of(func(s sample) float64 { return s.cpu }),
		of(func(s sample) float64 { return s.redisCPU }),
		of(func(s sample) float64 { return s.rssMB }),
	}
}

func (b *bench) run(rounds, seconds int, short bool) error {
	var out strings.Builder
	fmt.Fprintf(&out, "Written by `go run ./bench` on %d cores (%s), shared by Redis, the service and wrk: "+
		"medians of %d rounds of %d s.\n\n", runtime.NumCPU(), runtime.Version(), rounds, seconds)
	fmt.Fprintf(&out, "Binary %.1f MB; start to first answer %d ms; resident memory idle %.0f MB.\n\n",
		b.binSize, b.startToFirst.Milliseconds(), b.idleRSS)
	out.WriteString("Each cell: the service / the floor, or / noop, and the median ratio.\n\n")
	const columns = "| requests/s | p50 ms | p99 ms | CPU µs/request | Redis CPU µs/request | memory MB |\n" +
		"|---|---|---|---|---|---|---|\n"
	out.WriteString("| connections " + columns)
	var rates [][]float64
	var limits []string
	for _, c := range connections {
		l := load{rounds: rounds, seconds: seconds, connections: c, body: usualBody}
		m, r, err := b.compare(l, b.service, b.floor, b.noop)
		if err != nil {
			return err
		}
		rates = append(rates, []float64{m[0].rate, m[1].rate, m[2].rate})
		row(&out, strconv.Itoa(c), m[0], m[1], r[1])
		row(&out, strconv.Itoa(c)+", noop", m[0], m[2], r[2])
		if c == 64 || c == 256 {
			limits = append(limits, fmt.Sprintf("at %d connections %.0f%% of noop's requests/s, %.2f times its CPU a request",
				c, 100*r[2].rate, r[2].cpu))
		}
	}
	fmt.Fprintf(&out, "\nShare of the limit that net/http sets: %s.\n", strings.Join(limits, "; "))
	out.WriteString("\n64 connections, as cost grows:\n\n| " + columns)
	if err := b.grow(&out, min(rounds, 3), seconds, short); err != nil {
		return err
	}
	fmt.Print(out.String())
	if short {
		return nil
	}
	if err := os.WriteFile("bench/results.md", []byte(out.String()), 0o644); err != nil {
		return err
	}
	return os.WriteFile("bench/chart.svg", []byte(chart(rates)), 0o644)
}

// grow writes a row for each thing that makes a request dearer.
func (b *bench) grow(out *strings.Builder, rounds, seconds int, short bool) error {
	usual := load{rounds: rounds, seconds: seconds, connections: 64, body: usualBody}
	add := func(name string, l load, service, floor *program) error {
		m, r, err := b.compare(l, service, floor)
		if err == nil {
			row(out, name, m[0], m[1], r[1])
		}
		return err
	}
	long := usual
	long.body = longBody
	if err := add("two URIs of 2 KB", long, b.service, b.floor); err != nil {
		return err
	}
	sealed, err := b.startService(b.redis, "SEAL_RECORDS=true")
	if err != nil {
		return err
	}
	if err := add("SEAL_RECORDS=true", usual, sealed, b.floor); err != nil {
		return err
	}
	file := filepath.Join(b.dir, "clients.json")
	if err := os.WriteFile(file, []byte(clientsFile(1000)), 0o600); err != nil {
		return err
	}
	listed, err := b.startService(b.redis, "CLIENTS_FILE="+file)
	if err != nil {
		return err
	}
	if err := add("CLIENTS_FILE of 1,000 clients", usual, listed, b.floor); err != nil {
		return err
	}
	for _, sessions := range []int{100_000, 1_000_000} {
		if short && sessions > 100_000 {
			break
		}
		perSession, err := b.fill(sessions)
		if err != nil {
			return err
		}
		full := usual
		full.keep = true
		name := fmt.Sprintf("%d sessions there, %.0f bytes of Redis each", sessions, perSession)
		if err := add(name, full, b.service, b.floor); err != nil {
			return err
		}
	}
	cluster, err := b.startCluster()
	if err != nil {
		return err
	}
	service, err := b.startService(cluster, "REDIS_MODE=cluster")
	if err != nil {
		return err
	}
	floor, err := b.startFloor(cluster)
	if err != nil {
		return err
	}
	return add("REDIS_MODE=cluster, three primaries", usual, service, floor)
}

// clientsFile has so many clients, all with the usual URIs. One is -dev's, without a limit to its rate.
func clientsFile(clients int) string {
	const uris = `"redirect_uris": ["https://acme.com/success", "https://acme.com/cancel"], "institution_ids": ["10"]`
	var s strings.Builder
	fmt.Fprintf(&s, `{"clients": {"dev": {%s}`, uris)
	for i := range clients - 1 {
		fmt.Fprintf(&s, `, "client-%d": {%s, "sessions_per_minute": 600}`, i, uris)
	}
	return s.String() + "}}"
}

func row(out *strings.Builder, name string, s, o, r sample) {
	fmt.Fprintf(out, "| %s |", name)
	for _, c := range [][3]float64{
		{s.rate, o.rate, r.rate}, {s.p50 / 1000, o.p50 / 1000, r.p50}, {s.p99 / 1000, o.p99 / 1000, r.p99},
		{s.cpu, o.cpu, r.cpu}, {s.redisCPU, o.redisCPU, r.redisCPU}, {s.rssMB, o.rssMB, r.rssMB},
	} {
		digits := 0
		if c[0] < 100 {
			digits = 1
		}
		if c[1] == 0 { // noop's Redis
			fmt.Fprintf(out, " %.*f / none |", digits, c[0])
			continue
		}
		fmt.Fprintf(out, " %.*f / %.*f, **%.2f** |", digits, c[0], digits, c[1], c[2])
	}
	out.WriteString("\n")
}

// fill leaves only this many session records in Redis, and returns the bytes each takes.
func (b *bench) fill(sessions int) (float64, error) {
	ctx := context.Background()
	client := b.redis[0].client
	if err := client.FlushAll(ctx).Err(); err != nil {
		return 0, err
	}
	before, err := used(ctx, client)
	if err != nil {
		return 0, err
	}
	expires := time.Now().Add(time.Hour).Unix()
	for done := 0; done < sessions; done += 10_000 {
		pipe := client.Pipeline()
		for i := done; i < done+10_000; i++ {
			value := fmt.Sprintf(`{"v":1,"id":"01m82zc9k9jjtp0wq3n5ad4p7q","client_id":"acme",`+
				`"end_user_id":"eu_2yRHN2ag2y4p8kCtm5DOeccZEXB","institution_id":"10",`+
				`"redirect_uri":"https://acme.com/success","cancel_uri":"https://acme.com/cancel",`+
				`"created_at":1795396347,"expires_at":%d}`, expires)
			pipe.Do(ctx, "SET", fmt.Sprintf("auth_session:%064x", i), value, "EXAT", expires)
		}
		if _, err := pipe.Exec(ctx); err != nil {
			return 0, err
		}
	}
	after, err := used(ctx, client)
	return (after - before) / float64(sessions), err
}

// used is the memory that Redis uses, in bytes.
func used(ctx context.Context, client *redis.Client) (float64, error) {
	info, err := client.Info(ctx, "memory").Result()
	match := regexp.MustCompile(`used_memory:(\d+)`).FindStringSubmatch(info)
	if err != nil || match == nil {
		return 0, fmt.Errorf("reading redis's memory: %v", err)
	}
	return strconv.ParseFloat(match[1], 64)
}

// chart is a bar chart of requests a second, readable on light and dark.
func chart(rates [][]float64) string {
	const width, height, left, bottom = 640, 320, 60, 40
	most := 0.0
	for _, r := range rates {
		most = max(most, slices.Max(r))
	}
	most = math.Ceil(most/5000) * 5000
	y := func(v float64) float64 { return 30 + (height-30-bottom)*(1-v/most) }
	var s strings.Builder
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" `+
		`font-size="12" role="img" aria-label="Requests a second by connections: service, floor and noop">
<style>
.t{fill:#24292f}.g{stroke:#d0d7de}.s{fill:#0969da}.f{fill:#8c959f}.n{fill:#bf8700}
@media(prefers-color-scheme:dark){.t{fill:#e6edf3}.g{stroke:#30363d}.s{fill:#4493f8}.f{fill:#6e7681}.n{fill:#9e6a03}}
</style>
`, width, height)
	for v := 0.0; v <= most; v += 5000 {
		fmt.Fprintf(&s, `<line class="g" x1="%d" x2="%d" y1="%.1f" y2="%.1f"/>`, left, width-10, y(v), y(v))
		fmt.Fprintf(&s, `<text class="t" x="%d" y="%.1f" text-anchor="end">%.0f</text>`+"\n", left-6, y(v)+4, v)
	}
	group := float64(width-left-10) / float64(len(rates))
	for i, r := range rates {
		x := left + group*float64(i) + group/2
		for j, class := range []string{"s", "f", "n"} {
			fmt.Fprintf(&s, `<rect class="%s" x="%.1f" y="%.1f" width="28" height="%.1f"/>`+"\n",
				class, x-46+32*float64(j), y(r[j]), float64(height-bottom)-y(r[j]))
		}
		fmt.Fprintf(&s, `<text class="t" x="%.1f" y="%d" text-anchor="middle">%d</text>`+"\n",
			x, height-bottom+16, connections[i])
	}
	fmt.Fprintf(&s, `<text class="t" x="%d" y="%d" text-anchor="middle">connections</text>
<rect class="s" x="%d" y="8" width="12" height="12"/><text class="t" x="%d" y="18">authsession, requests/s</text>
<rect class="f" x="%d" y="8" width="12" height="12"/><text class="t" x="%d" y="18">floor: decode, one SET, encode</text>
<rect class="n" x="%d" y="8" width="12" height="12"/><text class="t" x="%d" y="18">noop: net/http alone</text>
</svg>
`, (width+left)/2, height-6, left, left+18, left+190, left+208, left+400, left+418)
	return s.String()
}
