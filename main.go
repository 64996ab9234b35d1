// Authsession serves POST /auth/session of an open-banking platform: it checks a partner's bearer token and JSON,
// writes a short-lived session record to Redis, and answers with the URL to send the end user to.
//
// "authsession help" prints the commands (usage, below) and the environment variables (package config).
//
// A request passes handlers.go, which has the routes and the order of all checks; session.go, which parses the body
// and makes the record; and store.go, which writes it to Redis. errors.go has all error answers.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"authsession/internal/accesslog"
	"authsession/internal/bearer"
	"authsession/internal/clients"
	"authsession/internal/config"
	"authsession/internal/dev"
	"authsession/internal/keytool"
	"authsession/internal/metrics"
	"authsession/internal/redisconn"
)

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400) // the live heap is a few MB: collect it less often
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(256 << 20) // and more often where thousands of connections make it larger
	}
	signal.Ignore(syscall.SIGPIPE) // keep running if the log's pipe closes; lost lines are counted
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	stderr := accesslog.NewWriter(os.Stderr)
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdout, stderr)
	failed := err != nil && !errors.Is(err, flag.ErrHelp)
	if failed && err != errLogged {
		fmt.Fprintln(stderr, "authsession:", err)
	}
	if stderr.Flush(time.Second); failed {
		os.Exit(1)
	}
}

const usage = `Without arguments authsession serves, set up by the environment variables below. Its commands:

  -dev               serve with nothing set up: an embedded Redis, a key of its own, a sandbox consent page
  check              read the variables and their files, print what would be in force or all that is wrong
  healthcheck        ask the running service's /readyz, with -live its /livez; exit status 0 or 1
  keygen             write a private key to a file, print its key set (more: authsession keygen -h)
  jwks a.pem b.pem   print the key set of existing private or public keys
  token              print a token signed by such a key (more: authsession token -h)
  version            print the version

The environment variables; an empty one is not set:

`

func run(ctx context.Context, args []string, getenv func(string) string, stdout io.Writer,
	stderr *accesslog.Writer) error {
	keyCommands := map[string]func(args []string, stdout, stderr io.Writer) error{
		"keygen": keytool.Keygen, "jwks": keytool.JWKS, "token": keytool.Token}
	if len(args) > 0 && keyCommands[args[0]] != nil {
		return keyCommands[args[0]](args[1:], stdout, stderr)
	}
	switch strings.Join(args, " ") {
	case "":
		cfg, err := config.Load(getenv)
		if err != nil {
			return err
		}
		signal.Ignore(syscall.SIGHUP) // files are read again without it
		log := newLog(cfg, stderr)
		warn(cfg, log)
		return serve(ctx, cfg, log, stderr, func(_ net.Addr, h http.Handler) (http.Handler, error) { return h, nil })
	case "-dev", "--dev":
		d, err := dev.Start(getenv, stdout, stderr)
		defer d.Stop()
		if err != nil {
			return err
		}
		return serve(ctx, d.Config, newLog(d.Config, stderr), stderr, d.Wrap)
	case "check":
		return check(getenv, stdout, stderr)
	case "healthcheck":
		return healthcheck(getenv, "/readyz")
	case "healthcheck -live", "healthcheck --live":
		return healthcheck(getenv, "/livez")
	case "version", "-version", "--version":
		_, err := fmt.Fprintln(stdout, "authsession", buildVersion(), runtime.Version())
		return err
	case "help", "-h", "-help", "--help":
		fmt.Fprint(stdout, usage)
		config.PrintVariables(stdout)
		return nil
	}
	return fmt.Errorf("unknown arguments %q: authsession help lists the commands", args)
}

// check reads the variables and their files as a start would, and connects to nothing. It prints what would be in force
// and logs the warnings of a start, or returns an error with a line for each fault. A key set file that cannot be used
// is a fault; a start would wait for it.
func check(getenv func(string) string, stdout, stderr io.Writer) error {
	cfg, err := config.Load(getenv)
	log := newLog(cfg, stderr)
	if keysErr := bearer.CheckFile(cfg.Tokens, log); keysErr != nil {
		err = errors.Join(err, fmt.Errorf("JWKS_URL must name a usable key set: %w", keysErr))
	}
	if err != nil {
		return err
	}
	warn(cfg, log)
	for _, setting := range cfg.Settings {
		fmt.Fprintln(stdout, setting)
	}
	return nil
}

func newLog(cfg config.Config, w io.Writer) *slog.Logger {
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: cfg.LogLevel}))
}

// errLogged is an error that the log already has.
var errLogged = errors.New("the log says why")

// serve runs the service until ctx ends, and then until the requests in flight have their answers. wrap is called once
// the addresses are open, and returns the handler to serve. The error is errLogged.
func serve(ctx context.Context, cfg config.Config, log *slog.Logger, lines *accesslog.Writer,
	wrap func(net.Addr, http.Handler) (http.Handler, error)) (err error) {
	log.Info("settings", slog.GroupAttrs("", cfg.Settings...))
	redisconn.LogTo(log)
	defer func() {
		if err != nil {
			log.Error("authsession failed", "cause", err.Error())
			err = errLogged
		}
	}()
	listener, err := net.Listen("tcp", cfg.Addr)
	if err != nil {
		return fmt.Errorf("listening on ADDR: %w", err)
	}
	defer listener.Close()
	s := newServer(cfg, log, lines)
	if cfg.MetricsAddr != "" {
		operators, err := net.Listen("tcp", cfg.MetricsAddr)
		if err != nil {
			return fmt.Errorf("listening on METRICS_ADDR: %w", err)
		}
		s.readMetrics(lines)
		operatorServer := newHTTPServer(s.operatorRoutes(), cfg.StoreTimeout, log)
		go func() { _ = operatorServer.Serve(operators) }()
		defer operatorServer.Close()
		log.Info("serving metrics", "addr", operators.Addr().String())
	}
	handler, err := wrap(listener.Addr(), s.routes())
	if err != nil {
		return err
	}
	srv := newHTTPServer(handler, cfg.StoreTimeout, log)
	limitConnections(srv)
	log.Info("listening", "addr", listener.Addr().String(), "version", buildVersion(), "go", runtime.Version())

	// The background outlives the requests, which outlive the signal.
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	ready, wait := s.runBackground(background, log)
	defer func() {
		stop()
		s.store.close()
		wait()
	}()
	failed := make(chan error, 1)
	go func() {
		<-ready
		failed <- srv.Serve(listener)
	}()
	select {
	case err := <-failed:
		return fmt.Errorf("serving: %w", err)
	case <-ctx.Done():
	}
	log.Info("shutting down", "drain_delay", cfg.DrainDelay.String(), "grace", cfg.ShutdownGrace.String())
	s.draining.Store(true)
	select {
	case err := <-failed:
		return fmt.Errorf("serving: %w", err)
	case <-time.After(cfg.DrainDelay):
	}
	if err := s.shutdown(srv); err != nil {
		return fmt.Errorf("requests were cut off after SHUTDOWN_GRACE: %w", err)
	}
	log.Info("stopped")
	return nil
}

// runBackground keeps keys, clients and the state of Redis up to date until ctx ends; wait returns when all of it has
// ended. ready is closed when the keys are loaded and Redis's clock is known, or after half a second, because a gateway
// may send requests as soon as the address is open.
func (s *server) runBackground(ctx context.Context, log *slog.Logger) (ready <-chan struct{}, wait func()) {
	var running sync.WaitGroup
	running.Go(func() { s.verifier.Run(ctx) })
	running.Go(func() { s.store.watch(ctx) })
	running.Go(func() { s.config.Clients.Run(ctx, log) })
	running.Go(func() { s.config.Redis.WatchSentinels(ctx, s.config.StoreTimeout, s.store.connect) })
	starting, started := context.WithTimeout(ctx, 500*time.Millisecond)
	running.Go(func() {
		defer started()
		_, _ = s.store.ask(false)
		_ = s.verifier.WaitReady(starting)
	})
	return starting.Done(), running.Wait
}

// shutdown gives the requests in flight SHUTDOWN_GRACE. Those that then wait for Redis get 503. After another second,
// all connections are closed.
func (s *server) shutdown(srv *http.Server) error {
	grace, cancel := context.WithTimeout(context.Background(), s.config.ShutdownGrace)
	defer cancel()
	err := srv.Shutdown(grace)
	if err == nil {
		return nil
	}
	s.store.close()
	last, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = srv.Shutdown(last)
	_ = srv.Close()
	return err
}

// newServer returns a server that writes a line to lines for each request.
func newServer(cfg config.Config, log *slog.Logger, lines io.Writer) *server {
	m := metrics.New(buildVersion())
	return &server{
		config:   cfg,
		verifier: bearer.New(cfg.Tokens, log),
		store:    openStore(cfg, m.RedisWrite, log),
		inFlight: clients.NewShares(cfg.MaxInFlight),
		metrics:  m,
		log:      lines,
		now:      time.Now,
	}
}

// readMetrics registers what is read when Prometheus asks.
func (s *server) readMetrics(lines *accesslog.Writer) {
	m := s.metrics
	m.Func("http_requests_in_flight", "Requests for a session in flight, their bodies read.",
		func() float64 { return float64(s.inFlight.InUse()) })
	m.Func("http_requests_in_flight_limit", "MAX_IN_FLIGHT.", func() float64 { return float64(s.config.MaxInFlight) })
	m.Func("log_lines_dropped_total", "Log lines that the log's reader did not take.",
		func() float64 { return float64(lines.Dropped()) })
	m.Func("redis_clock_skew_seconds", "Redis's clock minus ours when last asked, network time left out.",
		func() float64 { return s.store.clockSkew().Seconds() })
	m.Func("redis_primaries_failing", "Primaries of Redis that took no session at the last check.",
		func() float64 { return float64(len(s.store.primariesFailing())) })
	m.Func("key_set_last_success_timestamp_seconds", "Unix time of the key set's last good fetch; 0: never.",
		func() float64 { return float64(s.verifier.KeySetLastSuccess()) })
	if file := s.config.Clients; file != nil {
		m.Func("clients_file_last_load_success", "1 if the last reading of CLIENTS_FILE went well, else 0.",
			func() float64 { return map[bool]float64{true: 1}[file.Fresh()] })
	}
}

// maxConnections is how many callers' connections are open at once. An idle one uses about 20 KB.
const maxConnections = 10_000

// limitConnections closes new connections of srv while maxConnections are open.
func limitConnections(srv *http.Server) {
	var open atomic.Int64
	srv.ConnState = func(c net.Conn, state http.ConnState) {
		if state == http.StateNew && open.Add(1) > maxConnections {
			_ = c.Close()
		} else if state == http.StateClosed {
			open.Add(-1)
		}
	}
}

// newHTTPServer sets the limits of a connection.
func newHTTPServer(h http.Handler, storeTimeout time.Duration, log *slog.Logger) *http.Server {
	const writeSlack = 5 * time.Second // for an answer on its way
	return &http.Server{
		Handler:                      h,
		ReadHeaderTimeout:            5 * time.Second,
		ReadTimeout:                  bodyTimeout,
		WriteTimeout:                 bodyTimeout + bearer.MaxWait + storeTimeout + writeSlack,
		IdleTimeout:                  2 * time.Minute, // longer than gateways keep theirs
		MaxHeaderBytes:               8 << 10,         // net/http adds 4 KiB; a token has 8
		ErrorLog:                     slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		DisableGeneralOptionsHandler: true, // OPTIONS * is 404 like any other path
	}
}

// warn logs settings that work but may be a mistake in production.
func warn(cfg config.Config, log *slog.Logger) {
	if cfg.Tokens.Issuer == "" {
		log.Warn("JWT_ISSUER is not set: tokens of any issuer are accepted if a key of the set signed them")
	}
	if cfg.Tokens.Audience == "" {
		log.Warn("JWT_AUDIENCE is not set: tokens for other services are accepted")
	}
	if cfg.Clients == nil {
		log.Warn("CLIENTS_FILE is not set: every client may send browsers to any URI")
	}
	if cfg.Redis.SkipsVerify() {
		log.Warn("REDIS_URL sets skip_verify: the server certificate is not verified")
	}
}

// healthcheck asks the service that listens on ADDR for path. The error says why the answer is not 200.
func healthcheck(getenv func(string) string, path string) error {
	cfg, err := config.Load(getenv)
	if cfg.Addr == "" || cfg.StoreTimeout == 0 { // only these are needed
		return err
	}
	host, port, _ := net.SplitHostPort(cfg.Addr)
	if host == "" || host == "0.0.0.0" || host == "::" {
		host = "localhost"
	}
	client := http.Client{Transport: &http.Transport{}, Timeout: cfg.StoreTimeout + 2*time.Second} // without a proxy
	response, err := client.Get("http://" + net.JoinHostPort(host, port) + path)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		answer, _ := io.ReadAll(io.LimitReader(response.Body, 4<<10))
		return fmt.Errorf("status %d: %s", response.StatusCode, answer)
	}
	return nil
}

// version is set by the linker (Dockerfile), or "".
var version string

func buildVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return cmp.Or(version, info.Main.Version)
	}
	return cmp.Or(version, "unknown")
}
