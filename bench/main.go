// Bench measures the service against two programs: bench/floor, a handler that does one SET and checks nothing, and
// bench/noop, the limit that net/http sets. It writes bench/results.md. It needs Linux with redis-server, redis-cli and
// wrk on the PATH, and runs from the root of the repository:
//
//	go run ./bench                   everything, about 5 minutes
//	go run ./bench -against BINARY   also compares with another build of authsession
//	go run ./bench -short            one round of a second each, without results.md, to see that it works
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const columns = " compared with | requests/s | p50 ms | p99 ms | CPU µs a request | Redis CPU µs a request " +
	"| memory MB |\n|---|---|---|---|---|---|---|---|\n"

// bench holds the settings of a run and what it has started.
type bench struct {
	ctx                       context.Context
	cancel                    context.CancelFunc // ends what has been started
	out                       io.Writer
	rounds, seconds, sessions int
	dir, token                string // dir is for the binaries, the keys and the programs' output
	redis, floor              *program
	started                   []*exec.Cmd
}

// program is a process that listens on a loopback address.
type program struct {
	name, addr string
	redis      *program // where it stores sessions; nil for noop
	pid        int
}

// load is what each program gets in a round.
type load struct {
	name        string // in the table's first column
	connections int
	uriSuffix   string // of both URIs
	sessions    int    // in Redis when the round begins
	env         string // a variable of the service
}

func main() {
	short := flag.Bool("short", false, "one round of a second each, without results.md")
	against := flag.String("against", "", "`path` of another build of authsession to compare with")
	flag.Parse()
	var results strings.Builder
	b := &bench{out: io.MultiWriter(os.Stdout, &results), rounds: 7, seconds: 2, sessions: 1_000_000}
	if *short {
		b.rounds, b.seconds, b.sessions = 1, 1, 100_000
	}
	b.ctx, b.cancel = signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer b.stop()
	programs := b.start(*against)
	fmt.Fprintf(b.out, "Written by `go run ./bench` on %d cores (%s), shared by the program, Redis and wrk: medians of "+
		"%d rounds of %d s.\nEach cell is the service / the other program, then the median ratio within a round.\n\n"+
		"| connections |"+columns, runtime.NumCPU(), runtime.Version(), b.rounds, b.seconds)
	for _, connections := range []int{1, 16, 64, 256} {
		b.compare(load{name: strconv.Itoa(connections), connections: connections}, programs...)
	}
	b.measureWorkloads()
	if !*short {
		b.check(os.WriteFile("bench/results.md", []byte(results.String()), 0o644))
	}
}

// start builds and starts the programs, and another build of the service unless against is "". The service is first.
func (b *bench) start(against string) []*program {
	var err error
	b.dir, err = os.MkdirTemp("", "authsession-bench")
	b.check(err)
	b.output("env", "CGO_ENABLED=0", "go", "build", "-trimpath", "-ldflags=-s -w", "-o", b.dir,
		".", "./bench/floor", "./bench/noop")
	binary, key := filepath.Join(b.dir, "authsession"), filepath.Join(b.dir, "key.pem")
	b.output(binary, "keygen", "-alg", "RS256", "-out", key, "-jwks", filepath.Join(b.dir, "jwks.json"))
	b.token = strings.TrimSpace(b.output(binary, "token", "-key", key, "-client", "bench"))
	b.redis = &program{name: "redis-server", addr: b.freeAddr()}
	_, port, _ := net.SplitHostPort(b.redis.addr)
	b.launch(b.redis, nil, "redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", b.dir)
	began := time.Now()
	service := b.startService("service", binary)
	startTime := time.Since(began)
	info, err := os.Stat(binary)
	b.check(err)
	time.Sleep(time.Second)
	_, memory := b.usage(service)
	fmt.Fprintf(b.out, "The binary has %.1f MB. The service is ready %d ms after its start and uses %.0f MB of memory "+
		"when idle.\n\n", float64(info.Size())/1e6, startTime.Milliseconds(), memory)
	b.floor = &program{name: "floor", addr: b.freeAddr(), redis: b.redis}
	b.launch(b.floor, nil, filepath.Join(b.dir, "floor"), b.floor.addr, b.redis.addr)
	noop := &program{name: "noop", addr: b.freeAddr()}
	b.launch(noop, nil, filepath.Join(b.dir, "noop"), noop.addr)
	programs := []*program{service, b.floor, noop}
	if against != "" {
		programs = append(programs, b.startService("other build", against))
	}
	return programs
}

// measureWorkloads measures what makes a request more expensive, for the service and the floor.
func (b *bench) measureWorkloads() {
	b.rounds = min(b.rounds, 3)
	fmt.Fprintf(b.out, "\n64 connections, medians of %d rounds:\n\n| workload |"+columns, b.rounds)
	const uris = `"redirect_uris":["https://acme.com/success","https://acme.com/cancel"],"institution_ids":["10"]`
	clients, file := `{"clients":{"bench":{`+uris+`}`, filepath.Join(b.dir, "clients.json")
	for i := range 999 {
		clients += fmt.Sprintf(`,"client-%d":{%s,"sessions_per_minute":600}`, i, uris)
	}
	b.check(os.WriteFile(file, []byte(clients+"}}"), 0o600))
	for _, l := range []load{
		{name: "two URIs of 2 KB", uriSuffix: "?state=" + strings.Repeat("s", 2000)},
		{name: "SEAL_RECORDS=true", env: "SEAL_RECORDS=true"},
		{name: "CLIENTS_FILE of 1,000 clients", env: "CLIENTS_FILE=" + file},
		{name: strconv.Itoa(b.sessions) + " sessions in Redis", sessions: b.sessions},
	} {
		l.connections = 64
		b.compare(l, b.startService("service", filepath.Join(b.dir, "authsession"), l.env), b.floor)
	}
}

// compare writes a row for each program but the first, the service, which it compares with them. The programs take
// turns within each round, because the machine's speed drifts.
func (b *bench) compare(l load, programs ...*program) {
	samples := make([][][6]float64, len(programs)) // in the order of columns
	for round := range b.rounds {
		used := b.output("redis-cli", "-e", "-u", "redis://"+b.redis.addr,
			"--eval", "bench/fill.lua", ",", strconv.Itoa(l.sessions))
		if round == 0 && l.sessions > 0 {
			l.name += ", " + strings.TrimSpace(used) + " bytes each"
		}
		for turn := range programs {
			i := (turn + round) % len(programs)
			samples[i] = append(samples[i], b.wrk(programs[i], l))
		}
	}
	for i, p := range programs[1:] {
		fmt.Fprintf(b.out, "| %s | %s |", l.name, p.name)
		for figure, digits := range []int{0, 2, 2, 1, 1, 0} {
			var service, other, ratio []float64
			for round := range b.rounds {
				s, o := samples[0][round][figure], samples[i+1][round][figure]
				service, other, ratio = append(service, s), append(other, o), append(ratio, s/o)
			}
			if median(other) == 0 { // noop has no Redis
				fmt.Fprintf(b.out, " %.*f / none |", digits, median(service))
				continue
			}
			fmt.Fprintf(b.out, " %.*f / %.*f, **%.2f** |", digits, median(service), digits, median(other), median(ratio))
		}
		fmt.Fprintln(b.out)
	}
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

// wrk sends l to p for b.seconds. A response that is not a success ends the run.
func (b *bench) wrk(p *program, l load) [6]float64 {
	body := fmt.Sprintf(`{"end_user_id":"eu_2yRHN2ag2y4p8kCtm5DOeccZEXB","institution_id":"10",`+
		`"redirect_uri":"https://acme.com/success%[1]s","cancel_uri":"https://acme.com/cancel%[1]s"}`, l.uriSuffix)
	cpu, _ := b.usage(p)
	redisCPU, _ := b.usage(p.redis)
	out := b.output("wrk", "-t1", "-c", strconv.Itoa(l.connections), "-d", strconv.Itoa(b.seconds), "-s", "bench/wrk.lua",
		"-H", "Authorization: Bearer "+b.token, "http://"+p.addr+"/auth/session", body)
	cpuAfter, memory := b.usage(p)
	redisAfter, _ := b.usage(p.redis)
	var requests, micros, p50, p99, failed float64
	_, result, _ := strings.Cut(out, "RESULT ")
	if _, err := fmt.Sscan(result, &requests, &micros, &p50, &p99, &failed); err != nil || failed > 0 || requests == 0 {
		b.check(fmt.Errorf("%.0f requests failed", failed), "loading", p.name, out)
	}
	return [6]float64{requests / micros * 1e6, p50 / 1e3, p99 / 1e3,
		(cpuAfter - cpu) / requests, (redisAfter - redisCPU) / requests, memory}
}

// startService starts binary and returns when it is ready.
func (b *bench) startService(name, binary string, env ...string) *program {
	p := &program{name: name, addr: b.freeAddr(), redis: b.redis}
	b.launch(p, append(env, "ADDR="+p.addr, "AUTH_URL=https://consent.example/", "REDIS_URL=redis://"+b.redis.addr,
		"JWKS_URL=file://"+filepath.Join(b.dir, "jwks.json")), binary)
	b.wait(p, func() bool {
		response, err := http.Get("http://" + p.addr + "/readyz")
		return err == nil && response.Body.Close() == nil && response.StatusCode == http.StatusOK
	})
	return p
}

// launch starts p and returns when it listens. The process ends with b.ctx.
func (b *bench) launch(p *program, env []string, binary string, args ...string) {
	output, err := os.Create(filepath.Join(b.dir, p.addr+".log"))
	b.check(err)
	defer output.Close()
	cmd := exec.CommandContext(b.ctx, binary, args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), env...), output, output
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second // then SIGKILL
	b.check(cmd.Start())
	b.started, p.pid = append(b.started, cmd), cmd.Process.Pid
	b.wait(p, func() bool {
		c, err := net.Dial("tcp", p.addr)
		return err == nil && c.Close() == nil
	})
}

// wait polls until p is ready, for at most 20 seconds.
func (b *bench) wait(p *program, ready func() bool) {
	for until := time.Now().Add(20 * time.Second); !ready(); time.Sleep(2 * time.Millisecond) {
		if b.ctx.Err() != nil || time.Now().After(until) {
			printed, _ := os.ReadFile(filepath.Join(b.dir, p.addr+".log"))
			b.check(context.DeadlineExceeded, "starting", p.name, string(printed))
		}
	}
}

// output runs a command, for at most 3 minutes, and returns what it prints.
func (b *bench) output(name string, args ...string) string {
	ctx, cancel := context.WithTimeout(b.ctx, 3*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	b.check(err, "running", name, string(out))
	return string(out)
}

// check ends the run if err is not nil. It logs err and the details.
func (b *bench) check(err error, details ...string) {
	if err != nil {
		b.stop()
		log.Fatal(err, " ", strings.Join(details, " "))
	}
}

// stop ends what has been started.
func (b *bench) stop() {
	b.cancel()
	for _, cmd := range b.started {
		_ = cmd.Wait()
	}
	_ = os.RemoveAll(b.dir)
}

// usage returns the CPU time that p has used, in microseconds, and its resident memory in MB. For nil both are 0.
func (b *bench) usage(p *program) (cpu, memory float64) {
	if p == nil {
		return 0, 0
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	b.check(err, "reading the usage of", p.name)
	_, after, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(after) // from field 3 of proc_pid_stat(5)
	user, _ := strconv.ParseFloat(fields[11], 64)
	system, _ := strconv.ParseFloat(fields[12], 64)
	pages, _ := strconv.ParseFloat(fields[21], 64)
	return (user + system) * 1e4, pages * float64(os.Getpagesize()) / 1e6 // a clock tick is 10 ms
}

func (b *bench) freeAddr() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	b.check(err)
	defer l.Close()
	return l.Addr().String()
}
