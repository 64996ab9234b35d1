// Bench measures the service against the floor (bench/floor), both over one redis-server
// on this machine, and writes bench/results.md and bench/chart.svg. From the root of the
// repository, with redis-server and wrk (Debian's packages) on the PATH:
//
//	go run ./bench          all of it, some 6 minutes
//	go run ./bench -short   one round of a second each, to see that it works
//
// The two take turns within each round, since the machine's speed drifts; the figures
// are medians over the rounds, and of one run.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"log"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

var connections = []int{1, 16, 64, 256, 1024}

func main() {
	short := flag.Bool("short", false, "one round of a second each")
	flag.Parse()
	rounds, seconds := 9, 3
	if *short {
		rounds, seconds = 1, 1
	}
	b, err := start()
	if err == nil {
		err = b.run(rounds, seconds, *short)
	}
	if b != nil {
		b.stop()
	}
	if err != nil {
		log.Fatal(err)
	}
}

// bench is the running processes and what wrk sends.
type bench struct {
	dir              string
	redis            *process
	service, floor   *process
	client           *redis.Client
	token            string
	startToFirst     time.Duration
	idleRSS, binSize float64 // MB
}

type process struct {
	cmd  *exec.Cmd
	addr string
}

func start() (*bench, error) {
	b := &bench{}
	var err error
	if b.dir, err = os.MkdirTemp("", "authsession-bench"); err != nil {
		return b, err
	}
	serviceBin, floorBin := filepath.Join(b.dir, "authsession"), filepath.Join(b.dir, "floor")
	for bin, pkg := range map[string]string{serviceBin: ".", floorBin: "./bench/floor"} {
		build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin, pkg)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return b, fmt.Errorf("building %s: %v: %s", pkg, err, out)
		}
	}
	if info, err := os.Stat(serviceBin); err == nil {
		b.binSize = float64(info.Size()) / 1e6
	}
	redisAddr := freeAddr()
	_, port, _ := net.SplitHostPort(redisAddr)
	b.redis, err = b.launch(redisAddr, nil,
		"redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", b.dir)
	if err != nil {
		return b, err
	}
	b.client = redis.NewClient(&redis.Options{Addr: redisAddr})
	addr := freeAddr()
	if b.floor, err = b.launch(addr, nil, floorBin, addr, redisAddr); err != nil {
		return b, err
	}
	// -dev makes a key and a token; Redis and all else are as in production. The log goes to a file, a line a request.
	addr = freeAddr()
	began := time.Now()
	env := []string{"ADDR=" + addr, "AUTH_URL=https://consent.example/", "REDIS_URL=redis://" + redisAddr,
		"JWT_ALGORITHMS=RS256", "JWT_ISSUER=bench", "JWT_AUDIENCE=bench"}
	if b.service, err = b.launch(addr, env, serviceBin, "-dev"); err != nil {
		return b, err
	}
	if b.token, err = b.readToken(); err != nil {
		return b, err
	}
	for time.Since(began) < 10*time.Second {
		r, _ := http.NewRequest(http.MethodPost, "http://"+addr+"/auth/session", strings.NewReader(usualBody))
		r.Header.Set("Authorization", "Bearer "+b.token)
		response, err := http.DefaultClient.Do(r)
		if err == nil {
			_ = response.Body.Close()
			if response.StatusCode == http.StatusOK {
				b.startToFirst = time.Since(began)
				break
			}
		}
		time.Sleep(2 * time.Millisecond)
	}
	if b.startToFirst == 0 {
		return b, fmt.Errorf("the service does not answer: see %s", b.dir)
	}
	time.Sleep(time.Second)
	b.idleRSS = b.service.rss()
	return b, nil
}

// launch starts a program with its output in files, and waits until it listens on addr.
func (b *bench) launch(addr string, env []string, name string, args ...string) (*process, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	stdout, err := os.Create(filepath.Join(b.dir, filepath.Base(name)+".out"))
	if err != nil {
		return nil, err
	}
	stderr, err := os.Create(filepath.Join(b.dir, filepath.Base(name)+".err"))
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	for range 2000 {
		if c, err := net.Dial("tcp", addr); err == nil {
			return &process{cmd, addr}, c.Close()
		}
		time.Sleep(2 * time.Millisecond)
	}
	_ = cmd.Process.Kill()
	return nil, fmt.Errorf("%s does not listen", name)
}

func (b *bench) readToken() (string, error) {
	out, err := os.ReadFile(filepath.Join(b.dir, "authsession.out"))
	if err != nil {
		return "", err
	}
	match := regexp.MustCompile(`Bearer ([\w.-]+)`).FindSubmatch(out)
	if match == nil {
		return "", fmt.Errorf("no token in %q", out)
	}
	return string(match[1]), nil
}

func (b *bench) stop() {
	for _, p := range []*process{b.service, b.floor, b.redis} {
		if p != nil {
			_ = p.cmd.Process.Signal(syscall.SIGTERM)
			_ = p.cmd.Wait()
		}
	}
	_ = os.RemoveAll(b.dir)
}

func freeAddr() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// rss is the process's resident memory in MB.
func (p *process) rss() float64 {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	match := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(status)
	if match == nil {
		return math.NaN()
	}
	kb, _ := strconv.ParseFloat(string(match[1]), 64)
	return kb / 1000
}

// cpu is the processor time used so far; the kernel counts it in 10 ms.
func (p *process) cpu() time.Duration {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond
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

func (b *bench) wrk(p *process, connections, seconds int, body string) (sample, error) {
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
`, b.token, body)
	if err := os.WriteFile(script, []byte(lua), 0o600); err != nil {
		return sample{}, err
	}
	cpu, redisCPU := p.cpu(), b.redis.cpu()
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(seconds+30)*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "wrk", "-t1", "-c", strconv.Itoa(connections),
		"-d", strconv.Itoa(seconds)+"s", "-s", script, "http://"+p.addr+"/auth/session").CombinedOutput()
	if err != nil {
		return sample{}, fmt.Errorf("wrk: %v: %s", err, out)
	}
	cpu, redisCPU = p.cpu()-cpu, b.redis.cpu()-redisCPU
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

// compare runs both in turns, and returns the medians of service, floor, and their ratio
// within each round.
func (b *bench) compare(rounds, seconds, connections int, body string, keep bool) (
	service, floor, ratio sample, err error,
) {
	var services, floors, ratios []sample
	for range rounds {
		if !keep {
			if err := b.client.FlushAll(context.Background()).Err(); err != nil {
				return service, floor, ratio, err
			}
		}
		f, err := b.wrk(b.floor, connections, seconds, body)
		if err != nil {
			return service, floor, ratio, err
		}
		s, err := b.wrk(b.service, connections, seconds, body)
		if err != nil {
			return service, floor, ratio, err
		}
		services, floors = append(services, s), append(floors, f)
		ratios = append(ratios, sample{s.rate / f.rate, s.p50 / f.p50, s.p99 / f.p99,
			s.cpu / f.cpu, s.redisCPU / f.redisCPU, s.rssMB / f.rssMB})
	}
	return median(services), median(floors), median(ratios), nil
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
	out.WriteString("Each cell: the service / the floor, and the median ratio.\n\n")
	const columns = "| requests/s | p50 ms | p99 ms | CPU µs/request | Redis CPU µs/request | memory MB |\n" +
		"|---|---|---|---|---|---|---|\n"
	out.WriteString("| connections " + columns)
	var rates [][2]float64
	for _, c := range connections {
		s, f, r, err := b.compare(rounds, seconds, c, usualBody, false)
		if err != nil {
			return err
		}
		rates = append(rates, [2]float64{s.rate, f.rate})
		row(&out, strconv.Itoa(c), s, f, r)
	}
	out.WriteString("\n64 connections, as cost grows:\n\n| " + columns)
	few := min(rounds, 3)
	s, f, r, err := b.compare(few, seconds, 64, longBody, false)
	if err != nil {
		return err
	}
	row(&out, "two URIs of 2 KB", s, f, r)
	for _, sessions := range []int{100_000, 1_000_000} {
		if short && sessions > 100_000 {
			break
		}
		perSession, err := b.fill(sessions)
		if err != nil {
			return err
		}
		s, f, r, err := b.compare(few, seconds, 64, usualBody, true)
		if err != nil {
			return err
		}
		row(&out, fmt.Sprintf("%d sessions there, %.0f bytes of Redis each", sessions, perSession), s, f, r)
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

func row(out *strings.Builder, name string, s, f, r sample) {
	fmt.Fprintf(out, "| %s |", name)
	for _, c := range [][3]float64{
		{s.rate, f.rate, r.rate}, {s.p50 / 1000, f.p50 / 1000, r.p50}, {s.p99 / 1000, f.p99 / 1000, r.p99},
		{s.cpu, f.cpu, r.cpu}, {s.redisCPU, f.redisCPU, r.redisCPU}, {s.rssMB, f.rssMB, r.rssMB},
	} {
		digits := 0
		if c[0] < 100 {
			digits = 1
		}
		fmt.Fprintf(out, " %.*f / %.*f, **%.2f** |", digits, c[0], digits, c[1], c[2])
	}
	out.WriteString("\n")
}

// fill leaves only this many session records in Redis, and returns the bytes each takes.
func (b *bench) fill(sessions int) (float64, error) {
	ctx := context.Background()
	if err := b.client.FlushAll(ctx).Err(); err != nil {
		return 0, err
	}
	before, err := b.used(ctx)
	if err != nil {
		return 0, err
	}
	expires := time.Now().Add(time.Hour).Unix()
	for done := 0; done < sessions; done += 10_000 {
		pipe := b.client.Pipeline()
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
	after, err := b.used(ctx)
	return (after - before) / float64(sessions), err
}

func (b *bench) used(ctx context.Context) (float64, error) {
	info, err := b.client.Info(ctx, "memory").Result()
	match := regexp.MustCompile(`used_memory:(\d+)`).FindStringSubmatch(info)
	if err != nil || match == nil {
		return 0, fmt.Errorf("reading redis's memory: %v", err)
	}
	return strconv.ParseFloat(match[1], 64)
}

// chart is a bar chart of requests a second, readable on light and dark.
func chart(rates [][2]float64) string {
	const width, height, left, bottom = 640, 320, 60, 40
	most := 0.0
	for _, r := range rates {
		most = max(most, r[0], r[1])
	}
	most = math.Ceil(most/5000) * 5000
	y := func(v float64) float64 { return 30 + (height-30-bottom)*(1-v/most) }
	var s strings.Builder
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" `+
		`font-size="12" role="img" aria-label="Requests a second by connections, service and floor">
<style>
.t{fill:#24292f}.g{stroke:#d0d7de}.s{fill:#0969da}.f{fill:#8c959f}
@media(prefers-color-scheme:dark){.t{fill:#e6edf3}.g{stroke:#30363d}.s{fill:#4493f8}.f{fill:#6e7681}}
</style>
`, width, height)
	for v := 0.0; v <= most; v += 5000 {
		fmt.Fprintf(&s, `<line class="g" x1="%d" x2="%d" y1="%.1f" y2="%.1f"/>`, left, width-10, y(v), y(v))
		fmt.Fprintf(&s, `<text class="t" x="%d" y="%.1f" text-anchor="end">%.0f</text>`+"\n", left-6, y(v)+4, v)
	}
	group := float64(width-left-10) / float64(len(rates))
	for i, r := range rates {
		x := left + group*float64(i) + group/2
		for j, class := range []string{"s", "f"} {
			fmt.Fprintf(&s, `<rect class="%s" x="%.1f" y="%.1f" width="34" height="%.1f"/>`+"\n",
				class, x-36+38*float64(j), y(r[j]), float64(height-bottom)-y(r[j]))
		}
		fmt.Fprintf(&s, `<text class="t" x="%.1f" y="%d" text-anchor="middle">%d</text>`+"\n",
			x, height-bottom+16, connections[i])
	}
	fmt.Fprintf(&s, `<text class="t" x="%d" y="%d" text-anchor="middle">connections</text>
<rect class="s" x="%d" y="8" width="12" height="12"/><text class="t" x="%d" y="18">authsession, requests/s</text>
<rect class="f" x="%d" y="8" width="12" height="12"/><text class="t" x="%d" y="18">floor: decode, one SET, encode</text>
</svg>
`, (width+left)/2, height-6, left, left+18, left+190, left+208)
	return s.String()
}
