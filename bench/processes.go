package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

// bench is the programs under test and their Redis.
type bench struct {
	dir                  string
	running              []*process
	redis                []*server // one, for all but the cluster's programs
	service, floor, noop *program
	startToFirst         time.Duration
	idleRSS, binSize     float64 // MB
}

type process struct {
	cmd  *exec.Cmd
	addr string
}

// server is a Redis.
type server struct {
	*process
	client *redis.Client
}

// program is what wrk calls.
type program struct {
	*process
	token string
	redis []*server // what it writes to
}

func start() (*bench, error) {
	b := &bench{}
	var err error
	if b.dir, err = os.MkdirTemp("", "authsession-bench"); err != nil {
		return b, err
	}
	for bin, pkg := range map[string]string{"authsession": ".", "floor": "./bench/floor", "noop": "./bench/noop"} {
		build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(b.dir, bin), pkg)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return b, fmt.Errorf("building %s: %v: %s", pkg, err, out)
		}
	}
	if info, err := os.Stat(filepath.Join(b.dir, "authsession")); err == nil {
		b.binSize = float64(info.Size()) / 1e6
	}
	alone, err := b.startRedis()
	if err != nil {
		return b, err
	}
	b.redis = []*server{alone}
	began := time.Now()
	if b.service, err = b.startService(b.redis); err != nil {
		return b, err
	}
	b.startToFirst = time.Since(began)
	if b.floor, err = b.startFloor(b.redis); err != nil {
		return b, err
	}
	addr := freeAddr()
	p, err := b.launch(addr, nil, filepath.Join(b.dir, "noop"), addr)
	if err != nil {
		return b, err
	}
	b.noop = &program{process: p, token: b.service.token}
	time.Sleep(time.Second) // idle is a second after the first answer
	b.idleRSS = b.service.rss()
	return b, nil
}

// startService starts the service and returns when it has answered once. -dev makes a key and a token; Redis and all
// else are as in production. The log goes to a file, a line a request.
func (b *bench) startService(servers []*server, env ...string) (*program, error) {
	addr := freeAddr()
	env = append(env, "ADDR="+addr, "AUTH_URL=https://consent.example/", "REDIS_URL=redis://"+servers[0].addr,
		"JWT_ALGORITHMS=RS256", "JWT_ISSUER=bench", "JWT_AUDIENCE=bench")
	p, err := b.launch(addr, env, filepath.Join(b.dir, "authsession"), "-dev")
	if err != nil {
		return nil, err
	}
	service := &program{process: p, redis: servers}
	for until := time.Now().Add(10 * time.Second); time.Now().Before(until); time.Sleep(2 * time.Millisecond) {
		printed, _ := os.ReadFile(p.cmd.Stdout.(*os.File).Name())
		match := regexp.MustCompile(`Bearer ([\w.-]+)`).FindSubmatch(printed)
		if match == nil {
			continue
		}
		service.token = string(match[1])
		r, _ := http.NewRequest(http.MethodPost, "http://"+addr+"/auth/session", strings.NewReader(usualBody))
		r.Header.Set("Authorization", "Bearer "+service.token)
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			continue
		}
		_ = response.Body.Close()
		if response.StatusCode == http.StatusOK {
			return service, nil
		}
	}
	return nil, errors.New("the service does not answer")
}

// startFloor starts a floor, to which wrk sends what it sends to the service.
func (b *bench) startFloor(servers []*server) (*program, error) {
	addr := freeAddr()
	args := []string{addr, servers[0].addr}
	if len(servers) > 1 {
		args = append(args, "cluster")
	}
	p, err := b.launch(addr, nil, filepath.Join(b.dir, "floor"), args...)
	if err != nil {
		return nil, err
	}
	return &program{process: p, token: b.service.token, redis: servers}, nil
}

func (b *bench) startRedis(args ...string) (*server, error) {
	addr := freeAddr()
	_, port, _ := net.SplitHostPort(addr)
	args = append([]string{"--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", b.dir}, args...)
	p, err := b.launch(addr, nil, "redis-server", args...)
	if err != nil {
		return nil, err
	}
	return &server{p, redis.NewClient(&redis.Options{Addr: addr})}, nil
}

// startCluster returns three primaries that share the slots, once all agree.
func (b *bench) startCluster() (nodes []*server, err error) {
	ctx := context.Background()
	for i := range 3 {
		_, bus, _ := net.SplitHostPort(freeAddr())
		node, err := b.startRedis("--cluster-enabled", "yes", "--cluster-port", bus,
			"--cluster-config-file", bus+".conf")
		if err != nil {
			return nil, err
		}
		from, to := i*16384/3, (i+1)*16384/3-1
		if err := node.client.ClusterAddSlotsRange(ctx, from, to).Err(); err != nil {
			return nil, err
		}
		_ = node.client.Do(ctx, "CLUSTER", "SET-CONFIG-EPOCH", i+1).Err()
		host, port, _ := net.SplitHostPort(node.addr)
		nodes = append(nodes, node)
		if err := nodes[0].client.Do(ctx, "CLUSTER", "MEET", host, port, bus).Err(); i > 0 && err != nil {
			return nil, err
		}
	}
	for range 1000 {
		agree := 0
		for _, node := range nodes {
			info := node.client.ClusterInfo(ctx).Val()
			if strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_known_nodes:3") {
				agree++
			}
		}
		if agree == len(nodes) {
			return nodes, nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return nil, errors.New("the cluster does not agree")
}

// launch starts a program with its output in files, and waits until it listens on addr.
func (b *bench) launch(addr string, env []string, name string, args ...string) (*process, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	output := filepath.Join(b.dir, fmt.Sprintf("%s-%d", filepath.Base(name), len(b.running)))
	stdout, err := os.Create(output + ".out")
	if err != nil {
		return nil, err
	}
	stderr, err := os.Create(output + ".err")
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd, addr}
	b.running = append(b.running, p)
	for range 2000 {
		if c, err := net.Dial("tcp", addr); err == nil {
			return p, c.Close()
		}
		time.Sleep(2 * time.Millisecond)
	}
	return nil, fmt.Errorf("%s does not listen", name)
}

func (b *bench) stop() {
	for _, p := range b.running {
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		_ = p.cmd.Wait()
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

// redisCPU is the processor time that all of p's Redis have used so far.
func (p *program) redisCPU() (sum time.Duration) {
	for _, s := range p.redis {
		sum += s.cpu()
	}
	return sum
}
