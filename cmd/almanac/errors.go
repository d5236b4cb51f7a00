package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/internal/fault"
)

// Exit codes.
const (
	exitDone     = 0
	exitError    = 1
	exitUsage    = 2
	exitDeadline = 3
)

// usageError is a command line that can't be understood.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// usageArgs makes a check of arguments report usage errors.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError{err}
		}
		return nil
	}
}

// exitCode translates an error.
func exitCode(err error) int {
	var usage usageError
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &usage):
		return exitUsage
	case client.ReasonOf(err) == client.ReasonDeadline, errors.Is(err, context.DeadlineExceeded):
		return exitDeadline
	}
	return exitError
}

// failure is an error as programs read it.
type failure struct {
	Error  string `json:"error"`
	Reason string `json:"reason"`
	Remedy string `json:"remedy"`
}

func describe(err error) failure {
	var usage usageError
	var e *client.Error
	var f *fault.Error // of a node that runs in this process
	var out failure
	switch {
	case errors.As(err, &e):
		out = failure{err.Error(), string(e.Reason), e.Remedy}
	case errors.As(err, &f):
		out = failure{err.Error(), f.Kind.String(), f.Remedy}
	case errors.Is(err, context.DeadlineExceeded):
		out = failure{err.Error(), string(client.ReasonDeadline), ""}
	case errors.Is(err, context.Canceled):
		out = failure{err.Error(), string(client.ReasonCancelled), ""}
	default:
		out = failure{err.Error(), string(client.ReasonInternal), ""}
	}
	if errors.As(err, &usage) {
		out.Reason = "usage"
	}
	if out.Remedy == "" || out.Remedy == client.RemedyUnreachable {
		out.Remedy = remedies[out.Reason]
	}
	return out
}

// remedies are for errors that come without one, or with one that knows no flags: most are of this process or of the
// connection, where no server could say what helps.
var remedies = map[string]string{
	"usage":                          "see almanac --help",
	string(client.ReasonUnavailable): "check that a node runs there, and --endpoints",
	string(client.ReasonDeadline):    "check that a node runs there, and --endpoints; or allow more time with --request-timeout",
	string(client.ReasonInternal):    "see the logs of the nodes",
	string(client.ReasonTooLarge):    "send less at once",
}

// report writes an error for the reader that the output is meant for.
func (a *app) report(err error, asJSON bool) {
	f := describe(err)
	if asJSON {
		line, _ := json.Marshal(f) // strings always marshal
		fmt.Fprintf(a.err, "%s\n", line)
		return
	}
	fmt.Fprintf(a.err, "error: %s (%s)\n", f.Error, f.Reason)
	if f.Remedy != "" {
		fmt.Fprintf(a.err, "remedy: %s\n", f.Remedy)
	}
}
