package groupcommit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// proof is what came along with the replies to a pipeline's SETs.
type proof struct {
	clock   time.Time     // Redis's
	skew    time.Duration // how far it is ahead of ours; 0: not known
	err     error         // why no OK counts; nil: each does
	sendErr error         // go-redis's, of the pipeline as a whole
}

// exec sends pipe, whose SETs are there, and along with them what an OK needs and any questions. They come behind the
// SETs, since go-redis decides by the first reply whether to send all again.
func (g *Writer) exec(ctx context.Context, pipe redis.Pipeliner, questions ...redis.Cmder) (p proof) {
	sent := time.Now()
	clock := pipe.Time(ctx)
	for _, q := range questions {
		_ = pipe.Process(ctx, q)
	}
	var have *redis.IntCmd
	if g.replicas > 0 {
		deadline, _ := ctx.Deadline()
		left := time.Until(deadline) * 3 / 4 // so that its reply, up to 100 ms late, comes in time; 0 would be for ever
		have = redis.NewIntCmd(ctx, "wait", g.replicas, max(1, left.Milliseconds()))
		_ = pipe.Process(ctx, have)
	}
	_, p.sendErr = pipe.Exec(ctx)
	p.clock, p.skew, p.err = checkClock(clock, sent)
	if have == nil || p.err != nil {
		return p
	}
	if n, err := have.Result(); err != nil {
		p.err = fmt.Errorf("waiting for replicas: %w", err)
	} else if n < int64(g.replicas) {
		p.err = fmt.Errorf("%w: %d, not %d", ErrReplicas, n, g.replicas)
	}
	return p
}

// checkClock compares the clock in a reply to TIME, asked for at sent, with ours. ahead leaves out what the reply's way
// may account for. Where it is over 2 s either way the error is ErrClock.
func checkClock(reply *redis.TimeCmd, sent time.Time) (theirs time.Time, ahead time.Duration, err error) {
	theirs, err = reply.Result()
	if err != nil {
		return theirs, 0, fmt.Errorf("reading redis's clock: %w", err)
	}
	ahead = max(0, time.Until(theirs))
	if behind := sent.Sub(theirs); behind > 0 {
		ahead = -behind
	}
	if ahead.Abs() > maxSkew {
		return theirs, ahead, fmt.Errorf("%w by %s, more than %s", ErrClock, ahead.Round(time.Millisecond), maxSkew)
	}
	return theirs, ahead, nil
}

// mayBeElsewhere tells whether another node of a cluster may take what failed with err: where the connection failed, or
// Redis says so. Other refusals would only come twice.
func mayBeElsewhere(err error) bool {
	if err == nil || errors.Is(err, ErrClock) || errors.Is(err, errExpired) || errors.Is(err, ErrReplicas) {
		return false
	}
	refusal, refused := errors.AsType[redis.Error](err)
	if !refused {
		return true
	}
	code, _, _ := strings.Cut(refusal.Error(), " ")
	elsewhere := []string{"MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "READONLY", "LOADING", "MASTERDOWN"}
	return slices.Contains(elsewhere, code)
}

// redirect writes w through the cluster's client, which finds the node that has w's slot by now. It is slower than a
// pipeline, and seldom needed: in a failover, or when slots move.
func (g *Writer) redirect(cluster *redis.ClusterClient, w *write) (err error) {
	defer g.Survive(&err)
	ctx, cancel := context.WithDeadline(context.Background(), w.deadline)
	defer cancel()
	_ = cluster.Process(ctx, w.set)
	if err := w.reply(); err != nil {
		return err
	}
	node, err := cluster.MasterForKey(ctx, w.key)
	if err != nil {
		return err
	}
	pipe := node.Pipeline()
	if g.replicas > 0 {
		_ = pipe.Process(ctx, w.set) // again, since WAIT is about what its own connection wrote
	}
	p := g.exec(ctx, pipe)
	return cmp.Or(w.reply(), p.err, w.outlives(p.clock))
}

// TimedOut tells whether an error of Set or Probe is that Redis did not answer in time.
func TimedOut(err error) bool {
	netErr, ok := errors.AsType[net.Error](err)
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, redis.ErrPoolTimeout) || ok && netErr.Timeout()
}
