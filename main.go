// Authsession serves POST /auth/session of an open-banking platform: it checks a partner's bearer token and JSON,
// writes a short-lived session record to Redis, and answers with the URL to send the end user to.
//
// Usage:
//
//	authsession              serve, set up by environment variables (-h lists them)
//	authsession -dev         serve with nothing set up: an embedded Redis, a throw-away key, a sandbox consent page
//	authsession healthcheck  ask the running service's /readyz; exit status 0 or 1
//	authsession keygen       write a private key to a file, print its key set
//	authsession jwks         print the key set of such keys, or of public ones
//	authsession token        print a token by such a key
//	authsession -version     print the version
//
// The way of a request: server.go has the routes and what every answer has in common; handlers.go checks the request,
// its token by internal/bearer and its body by session.go, which makes the record; store.go writes the record by
// internal/groupcommit; errors.go has the refusals.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"authsession/internal/bearer"
	"authsession/internal/clients"
	"authsession/internal/keytool"
	"authsession/internal/linelog"
	"authsession/internal/listener"
	"authsession/internal/redisurl"

	"golang.org/x/time/rate"
)

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400) // the live heap is a few MB: collect it less often
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(256 << 20) // and oftener where thousands of connections make it larger
	}
	signal.Ignore(syscall.SIGPIPE) // a reader of the log that goes away: what is written then is lost, and counted
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr)
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return
	}
	if len(os.Args) > 1 { // somebody has typed them
		fmt.Fprintln(os.Stderr, "authsession:", err)
	} else {
		slog.New(slog.NewJSONHandler(os.Stderr, nil)).Error("authsession failed", "cause", err.Error())
	}
	os.Exit(1)
}

const usage = `Without arguments authsession serves, set up by the environment variables below.

  healthcheck
    	ask the running service's /readyz; exit status 0 or 1
  keygen
    	write a private key to a file, print its key set (more: authsession keygen -h)
  jwks a.pem b.pem …
    	print the key set of such keys, or of public ones
  token
    	print a token by such a key (more: authsession token -h)`

func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("authsession", flag.ContinueOnError)
	flags.SetOutput(stderr)
	version := flags.Bool("version", false, "print the version")
	dev := flags.Bool("dev", false,
		"serve with nothing set up: an embedded Redis, a throw-away key, a sandbox consent page")
	flags.Usage = func() {
		fmt.Fprintln(stderr, usage)
		flags.PrintDefaults()
		fmt.Fprint(stderr, "\nThe environment variables; one that is empty is not set:\n\n")
		printVariables(stderr)
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch {
	case *version:
		_, err := fmt.Fprintln(stdout, versionText(build()))
		return err
	case flags.NArg() == 1 && flags.Arg(0) == "healthcheck":
		cfg, _ := loadConfig(getenv) // only ADDR and STORE_TIMEOUT are needed
		return healthcheck(cfg.addr, cfg.storeTimeout+2*time.Second)
	case flags.Arg(0) == "keygen":
		return keytool.Keygen(flags.Args()[1:], stdout, stderr)
	case flags.Arg(0) == "jwks":
		return keytool.JWKS(flags.Args()[1:], stdout, stderr)
	case flags.Arg(0) == "token":
		return keytool.Token(flags.Args()[1:], stdout, stderr)
	case flags.NArg() > 0:
		return errors.New("the arguments may be one of: healthcheck, keygen, jwks, token, -dev, -version")
	case *dev:
		d, err := startDev(getenv, stdout, stderr)
		defer d.stop()
		if err != nil {
			return err
		}
		return serve(ctx, d.config, stderr, d.listening)
	}
	cfg, err := loadConfig(getenv)
	if err != nil {
		return err
	}
	return serve(ctx, cfg, stderr, func(*server, net.Addr) error { return nil })
}

// serve runs the service until ctx ends, and then until the requests in flight have their answers. listening is called
// once the address is open, and may add to the server before it serves.
func serve(ctx context.Context, cfg config, stderr io.Writer, listening func(*server, net.Addr) error) error {
	lines := linelog.New(stderr)
	defer lines.Flush(time.Second)
	log := slog.New(slog.NewJSONHandler(lines, &slog.HandlerOptions{Level: cfg.logLevel}))
	redisurl.LogTo(log)
	tcp, err := net.Listen("tcp", cfg.addr)
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	defer tcp.Close()
	callers := listener.New(tcp, maxConnections)
	s := newServer(cfg, log, lines)
	if err := listening(s, tcp.Addr()); err != nil {
		return err
	}
	srv := newHTTPServer(s.routes(), cfg.storeTimeout, log)
	if cfg.metricsAddr != "" {
		metricsListener, err := net.Listen("tcp", cfg.metricsAddr)
		if err != nil {
			return fmt.Errorf("listening for metrics: %w", err)
		}
		metrics := newHTTPServer(metricsRoutes(s.metrics.registry(&s.api, callers, lines)), cfg.storeTimeout, log)
		go func() { _ = metrics.Serve(metricsListener) }()
		defer metrics.Close()
		log.Info("serving metrics", "addr", metricsListener.Addr().String())
	}

	// The background outlives the requests, which outlive the signal.
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	running.Go(func() { s.verifier.Run(background) })
	running.Go(func() { s.store.watch(background) })
	running.Go(func() { s.clients.Run(background, log) })
	running.Go(func() { cfg.redis.Follow(background, cfg.storeTimeout) })
	defer func() {
		stop()
		_ = s.store.close() // a check that waits for Redis ends
		running.Wait()
	}()

	log.Info("listening", "addr", tcp.Addr().String(), "version", versionText(build()))
	warn(cfg, log)
	failed := make(chan error, 1)
	go func() {
		// A gateway may send requests as soon as the address is open. The first wait a moment for the keys.
		wait, cancel := context.WithTimeout(background, 500*time.Millisecond)
		_ = s.verifier.WaitReady(wait)
		cancel()
		failed <- srv.Serve(callers)
	}()
	select {
	case err := <-failed:
		return fmt.Errorf("serving: %w", err)
	case <-ctx.Done():
	}
	log.Info("shutting down", "drain_delay", cfg.drainDelay.String(), "grace", cfg.shutdownGrace.String())
	s.draining.Store(true)
	select {
	case err := <-failed:
		return fmt.Errorf("serving: %w", err)
	case <-time.After(cfg.drainDelay):
	}
	grace, cancel := context.WithTimeout(context.Background(), cfg.shutdownGrace)
	defer cancel()
	if err := srv.Shutdown(grace); err != nil {
		// What waits for Redis or for a body gets an error, which becomes a 503.
		s.cutOff.Store(true)
		callers.StopReading()
		_ = s.store.close()
		last, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = srv.Shutdown(last)
		_ = srv.Close()
		return fmt.Errorf("requests were cut off after SHUTDOWN_GRACE: %w", err)
	}
	log.Info("stopped")
	return nil
}

// newServer returns a server that writes its log of requests, each in one call, to lines.
func newServer(cfg config, log *slog.Logger, lines io.Writer) *server {
	m := newMetrics()
	return &server{
		api: api{
			verifier:   bearer.New(cfg.tokens, log),
			certHeader: cfg.certHeader,
			clients:    cfg.clients,
			store: openStore(cfg.redis, cfg.keyPrefix, cfg.storeTimeout, cfg.replicas,
				m.redisWrite, m.batchSize, log),
			now:         time.Now,
			authURL:     cfg.authURL,
			sessionTTL:  cfg.sessionTTL,
			sealRecords: cfg.sealRecords,
			inFlight:    clients.NewShares(cfg.maxInFlight),
			reading:     clients.NewShares(cfg.maxInFlight),
		},
		trusted:   cfg.trusted,
		metrics:   m,
		lines:     lines,
		logLevel:  cfg.logLevel,
		overShare: rate.NewLimiter(5000, 500),
	}
}

// warn logs what works but may not be meant.
func warn(cfg config, log *slog.Logger) {
	if cfg.tokens.Issuer == "" {
		log.Warn("JWT_ISSUER is not set: tokens of any issuer pass whose key is in the set")
	}
	if cfg.tokens.Audience == "" {
		log.Warn("JWT_AUDIENCE is not set: tokens meant for other services pass")
	}
	if cfg.redis.SkipsVerify() {
		log.Warn("REDIS_URL has skip_verify: whoever answers there passes for Redis")
	}
}

// versionText is what build knows. The version of a build between releases has the revision's first letters and needs
// no more.
func versionText(version, revision, goVersion string) string {
	if revision != "" && strings.Contains(version, revision[:min(12, len(revision))]) {
		revision = ""
	}
	known := slices.DeleteFunc([]string{version, revision, goVersion}, func(s string) bool { return s == "" })
	return strings.Join(append([]string{"authsession"}, known...), " ")
}
