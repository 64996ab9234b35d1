// Package compat proves that a client which Goa generates for this endpoint
// understands the service: results and errors decode into Goa's own types.
//
//	cd compat && go test -count=1 ./...
//
// The test generates a client from the design (design/design.go) into gen, which is
// not committed, and then runs the tests in client with it: they start the service
// as a process over Redis and call it. It is a module of its own so that the
// service's go.mod stays clean.
package compat

//go:generate go tool goa gen authsession/compat/design
