// Drives a service with the generated Go client; prints what it saw as JSON. docs/clients.md quotes it.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"

	bulkhead "bulkhead.invalid/client"
	"github.com/coder/websocket"
)

var (
	url = os.Getenv("BULKHEAD_CLIENT_URL")
	key = os.Getenv("BULKHEAD_CLIENT_KEY")
	ctx = context.Background()
)

// [problem]

// problemOf reads the body of any answer that is not a success. The fields ApplicationproblemJSON404 and the like hold
// the same, one for each status.
func problemOf(answer *http.Response, body []byte) *bulkhead.Problem {
	if answer.StatusCode < 400 {
		return nil
	}
	var problem bulkhead.Problem
	if err := json.Unmarshal(body, &problem); err != nil {
		return &bulkhead.Problem{Status: int32(answer.StatusCode), Title: answer.Status}
	}
	return &problem
}

// [end]

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func refused(answer *http.Response, body []byte) map[string]any {
	problem := problemOf(answer, body)
	told := map[string]any{"status": problem.Status, "type": problem.Type}
	if problem.Pointer != nil {
		told["pointer"], told["ceiling"] = *problem.Pointer, problem.Ceiling
	}
	if problem.Errors != nil {
		pointers := []string{}
		for _, wrong := range *problem.Errors {
			pointers = append(pointers, wrong.Pointer)
		}
		told["pointers"] = pointers
	}
	return told
}

// [stream]

// talk sends the text to the program's stdin and returns its stdout, checked, and its exit.
func talk(sandbox, execution, text string) (stdout []byte, exit bulkhead.StreamExit, err error) {
	path := fmt.Sprintf("/sandboxes/%s/executions/%s/stream?stdin=true", sandbox, execution)
	header := http.Header{"Authorization": {"Bearer " + key}}
	socket, _, err := websocket.Dial(ctx, strings.Replace(url, "http", "ws", 1)+path, &websocket.DialOptions{HTTPHeader: header})
	if err != nil {
		return nil, exit, err
	}
	defer socket.CloseNow()
	socket.SetReadLimit(1 << 20) // a frame of output has at most 64 KiB and one byte, which is above the default
	for {
		kind, frame, err := socket.Read(ctx)
		if err != nil {
			return nil, exit, err
		}
		if kind == websocket.MessageBinary { // the first byte is the channel: 1 stdout, 2 stderr
			if frame[0] == 1 {
				stdout = append(stdout, frame[1:]...)
			}
			continue
		}
		var told struct{ Type string }
		if err := json.Unmarshal(frame, &told); err != nil {
			return nil, exit, err
		}
		switch told.Type {
		case "start":
			eof, _ := json.Marshal(bulkhead.StreamStdinEof{Type: bulkhead.StreamStdinEofTypeStdinEof})
			err = errors.Join(
				socket.Write(ctx, websocket.MessageBinary, []byte(text)),
				socket.Write(ctx, websocket.MessageText, eof))
			if err != nil {
				return nil, exit, err
			}
		case "exit":
			digest := sha256.Sum256(stdout)
			err = json.Unmarshal(frame, &exit)
			if err == nil && hex.EncodeToString(digest[:]) != exit.Stdout.Sha256 {
				err = errors.New("the output was damaged on its way")
			}
			return stdout, exit, err
		}
	}
}

// [end]

func keepFiles(client *bulkhead.ClientWithResponses, sandbox string) []any {
	data := bytes.Repeat([]byte("\x00\xffhello"), 40_000)
	// [files]
	client.WriteFileWithBodyWithResponse(ctx, sandbox,
		&bulkhead.WriteFileParams{Path: "notes/data"}, "application/octet-stream", bytes.NewReader(data))
	back := must(client.ReadFileWithResponse(ctx, sandbox, &bulkhead.ReadFileParams{Path: "notes/data"})).Body
	listed := must(client.ListDirectoryWithResponse(ctx, sandbox, &bulkhead.ListDirectoryParams{Path: "notes"})).JSON200
	// Without the suffix WithResponse nothing is read ahead: the answer's body is the stream.
	archive := must(client.ReadArchive(ctx, sandbox, &bulkhead.ReadArchiveParams{Path: "notes"}))
	defer archive.Body.Close()
	written := must(client.WriteArchiveWithBodyWithResponse(ctx, sandbox,
		&bulkhead.WriteArchiveParams{Path: "copy"}, "application/x-tar", archive.Body))
	// [end]
	if problem := problemOf(written.HTTPResponse, written.Body); problem != nil {
		panic(problem.Detail)
	}
	names := []string{}
	for _, entry := range listed.Items {
		names = append(names, entry.Name)
	}
	copied := must(client.ReadFileWithResponse(ctx, sandbox, &bulkhead.ReadFileParams{Path: "copy/data"})).Body
	made := must(client.MakeDirectoryWithResponse(ctx, sandbox, &bulkhead.MakeDirectoryParams{Path: "empty"})).StatusCode()
	wrong := must(client.ReadFileWithResponse(ctx, sandbox, &bulkhead.ReadFileParams{Path: "notes"}))
	problem := problemOf(wrong.HTTPResponse, wrong.Body)
	return []any{bytes.Equal(data, back), names, bytes.Equal(data, copied), made, problem.Type, problem.Found}
}

func runAtOnce(client *bulkhead.ClientWithResponses) []any {
	// [run]
	request := bulkhead.Run{
		Command: []string{"cat"},
		Stdin:   pointer("hello\n"),
		Files:   &[]bulkhead.RunFile{{Path: "data.txt", Content: pointer("beside it")}},
	}
	keyed := &bulkhead.RunOnceParams{IdempotencyKey: pointer("run-1-of-go")}
	result := must(client.RunOnceWithResponse(ctx, keyed, request)).JSON200
	fmt.Println(result.Exit.Reason, result.Stdout)
	// [end]
	again := must(client.RunOnceWithResponse(ctx, keyed, request)).JSON200
	request.Stdin = pointer("something else")
	other := must(client.RunOnceWithResponse(ctx, keyed, request))
	return []any{result.Stdout, again.SandboxId == result.SandboxId, refused(other.HTTPResponse, other.Body)}
}

func pointer[T any](value T) *T { return &value }

func main() {
	// [use]
	client, err := bulkhead.NewClientWithResponses(url, bulkhead.WithRequestEditorFn(
		func(_ context.Context, request *http.Request) error {
			request.Header.Set("Authorization", "Bearer "+key)
			return nil
		}))
	if err != nil {
		panic(err)
	}
	request := bulkhead.CreateSandbox{
		Id:     pointer("build-go"),
		Labels: &map[string]string{"team": "ci"},
		Limits: &bulkhead.LimitsRequest{MemoryMib: pointer(int64(64))},
	}
	created, err := client.CreateSandboxWithResponse(ctx, nil, request)
	if err != nil {
		panic(err)
	}
	if problem := problemOf(created.HTTPResponse, created.Body); problem != nil {
		panic(problem.Title)
	}
	sandbox := created.JSON201
	command := bulkhead.CreateExecution{Command: []string{"echo", "hello"}, TimeoutSeconds: pointer(10.0)}
	started := must(client.CreateExecutionWithResponse(ctx, sandbox.Id, nil, command)).JSON201
	wait := &bulkhead.GetExecutionParams{WaitSeconds: pointer(30.0)}
	execution := must(client.GetExecutionWithResponse(ctx, sandbox.Id, started.Id, wait)).JSON200
	output := must(client.GetOutputWithResponse(ctx, sandbox.Id, started.Id, nil)).Body
	fmt.Println(execution.Exit.Reason, *execution.Exit.Code, string(output))
	// [end]

	start := func(command bulkhead.CreateExecution) string {
		return must(client.CreateExecutionWithResponse(ctx, sandbox.Id, nil, command)).JSON201.Id
	}
	missing := must(client.GetExecutionWithResponse(ctx, sandbox.Id, start(bulkhead.CreateExecution{Command: []string{"missing"}}), wait)).JSON200
	idle := []any{
		must(client.UpdateSandboxWithResponse(ctx, sandbox.Id, bulkhead.UpdateSandbox{IdleSeconds: pointer(60.0)})).JSON200.IdleSeconds,
		// A pointer that is nil is left out: null, which removes the time, is written by hand.
		must(client.UpdateSandboxWithBodyWithResponse(ctx, sandbox.Id, "application/json", strings.NewReader(`{"idle_seconds":null}`))).JSON200.IdleSeconds,
	}
	cat := start(bulkhead.CreateExecution{Command: []string{"cat"}, Stdin: pointer(bulkhead.StdinOpen)})
	stdout, exit, err := talk(sandbox.Id, cat, "over the wire\n")
	if err != nil {
		panic(err)
	}
	again := must(client.CreateSandboxWithResponse(ctx, nil, request))
	tooHigh := must(client.CreateSandboxWithResponse(ctx, nil, bulkhead.CreateSandbox{Limits: &bulkhead.LimitsRequest{MemoryMib: pointer(int64(1 << 40))}}))
	wrong := must(client.CreateSandboxWithResponse(ctx, nil, bulkhead.CreateSandbox{TtlSeconds: pointer(-1.0)}))
	nobody := must(client.GetSandboxWithResponse(ctx, "nobody", nil))
	stranger := must(must(bulkhead.NewClientWithResponses(url)).GetSandboxWithResponse(ctx, sandbox.Id, nil))
	if nobody.ApplicationproblemJSON404.Type != "/problems/not_found" {
		panic("the answer's own field holds no problem")
	}
	report := map[string]any{
		"sandbox": []any{sandbox.Id, sandbox.State, sandbox.Labels, sandbox.Limits.MemoryMib},
		"again":   again.StatusCode(),
		"output":  []any{execution.Exit.Code, string(output)},
		"missing": missing.Exit.Reason,
		"idle":    idle,
		"stream":  []any{string(stdout), exit.ExitCode, exit.Exit.Reason},
		"files":   keepFiles(client, sandbox.Id),
		"run":     runAtOnce(client),
		"problems": []any{
			refused(tooHigh.HTTPResponse, tooHigh.Body),
			refused(wrong.HTTPResponse, wrong.Body),
			refused(nobody.HTTPResponse, nobody.Body),
			refused(stranger.HTTPResponse, stranger.Body),
		},
		"deleted": must(client.DeleteSandboxWithResponse(ctx, sandbox.Id)).StatusCode(),
		"state":   must(client.GetSandboxWithResponse(ctx, sandbox.Id, nil)).JSON200.State,
	}
	var line bytes.Buffer
	if err := json.NewEncoder(&line).Encode(report); err != nil {
		panic(err)
	}
	fmt.Print(line.String())
}
