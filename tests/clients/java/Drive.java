// Drives a service with the generated Java client; prints what it saw as JSON. docs/clients.md quotes it.

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import dev.bulkhead.ApiClient;
import dev.bulkhead.ApiException;
import dev.bulkhead.api.ExecutionsApi;
import dev.bulkhead.api.FilesApi;
import dev.bulkhead.api.SandboxesApi;
import dev.bulkhead.model.*;
import java.io.ByteArrayOutputStream;
import java.io.File;
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.WebSocket;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.security.MessageDigest;
import java.util.*;
import java.util.concurrent.*;

public final class Drive {
    private static final String URL = System.getenv("BULKHEAD_CLIENT_URL");
    private static final String KEY = System.getenv("BULKHEAD_CLIENT_KEY");
    private static final ApiClient CLIENT = new ApiClient().setBasePath(URL).setBearerToken(KEY);
    private static final ObjectMapper MAPPER = CLIENT.getObjectMapper();

    // [problem]
    /** Every call throws an ApiException for what is not a success; its body is a problem. */
    static Problem problemOf(ApiException error) throws IOException {
        return MAPPER.readValue(error.getResponseBody(), Problem.class);
    }
    // [end]

    interface Call {
        Object make() throws ApiException;
    }

    static Map<String, Object> refused(Call call) throws IOException {
        try {
            throw new IllegalStateException("not refused: " + call.make());
        } catch (ApiException error) {
            Problem problem = problemOf(error);
            Map<String, Object> told = new TreeMap<>(Map.of("status", problem.getStatus(), "type", problem.getType()));
            if (problem.getPointer() != null) {
                told.put("pointer", problem.getPointer());
                told.put("ceiling", problem.getCeiling());
            }
            if (problem.getFound() != null) told.put("found", problem.getFound());
            if (!problem.getErrors().isEmpty()) {
                told.put("pointers", problem.getErrors().stream().map(FieldProblem::getPointer).toList());
            }
            return told;
        }
    }

    // [stream]
    /** Sends the text to the program's stdin; collects its stdout, and its exit. */
    static final class Talk implements WebSocket.Listener {
        final ByteArrayOutputStream stdout = new ByteArrayOutputStream();
        final CompletableFuture<StreamExit> exit = new CompletableFuture<>();
        private final StringBuilder text = new StringBuilder();
        private final String input;
        private boolean begins = true; // the next bytes are the first of a frame
        private boolean isStdout;

        Talk(String sandbox, String execution, String input) {
            this.input = input;
            String path = "/sandboxes/%s/executions/%s/stream?stdin=true".formatted(sandbox, execution);
            HttpClient.newHttpClient().newWebSocketBuilder()
                    .header("Authorization", "Bearer " + KEY)
                    .buildAsync(URI.create(URL.replaceFirst("http", "ws") + path), this)
                    .exceptionally(error -> { exit.completeExceptionally(error); return null; });
        }

        @Override
        public CompletionStage<?> onBinary(WebSocket socket, ByteBuffer data, boolean last) {
            if (begins && data.hasRemaining()) isStdout = data.get() == 1; // the first byte is the channel: 1 stdout, 2 stderr
            while (data.hasRemaining()) {
                byte next = data.get();
                if (isStdout) stdout.write(next);
            }
            begins = last;
            socket.request(1);
            return null;
        }

        @Override
        public CompletionStage<?> onText(WebSocket socket, CharSequence data, boolean last) {
            text.append(data);
            CompletionStage<?> done = null;
            if (last) {
                try {
                    done = take(socket, text.toString());
                } catch (Exception error) {
                    exit.completeExceptionally(error);
                }
                text.setLength(0);
            }
            socket.request(1);
            return done;
        }

        private CompletionStage<?> take(WebSocket socket, String frame) throws Exception {
            JsonNode told = MAPPER.readTree(frame);
            switch (told.get("type").asText()) {
                case "start":
                    String eof = MAPPER.writeValueAsString(new StreamStdinEof().type(StreamStdinEof.TypeEnum.STDIN_EOF));
                    return socket.sendBinary(ByteBuffer.wrap(input.getBytes(StandardCharsets.UTF_8)), true)
                            .thenCompose(open -> open.sendText(eof, true));
                case "exit":
                    StreamExit ended = MAPPER.treeToValue(told, StreamExit.class);
                    byte[] digest = MessageDigest.getInstance("SHA-256").digest(stdout.toByteArray());
                    if (!HexFormat.of().formatHex(digest).equals(ended.getStdout().getSha256())) {
                        throw new IOException("the output was damaged on its way");
                    }
                    exit.complete(ended);
            }
            return null;
        }

        @Override
        public void onError(WebSocket socket, Throwable error) {
            exit.completeExceptionally(error);
        }

        @Override
        public CompletionStage<?> onClose(WebSocket socket, int code, String reason) {
            exit.completeExceptionally(new IOException("the stream ended without an exit: " + code));
            return null;
        }
    }
    // [end]

    static List<Object> keepFiles(FilesApi files, String sandbox) throws Exception {
        byte[] data = "\0hello".repeat(40_000).getBytes(StandardCharsets.UTF_8);
        File local = File.createTempFile("data", null);
        Files.write(local.toPath(), data);
        // [files]
        files.writeFile(sandbox, "notes/data", local, null, null, null, null);
        File back = files.readFile(sandbox, "notes/data", null, null, null, null, null, null); // a temporary file
        List<DirectoryItem> listed = files.listDirectory(sandbox, "notes", null, null).getItems();
        File archive = files.readArchive(sandbox, "notes");
        files.writeArchive(sandbox, "copy", archive);
        // [end]
        File copy = files.readFile(sandbox, "copy/data", null, null, null, null, null, null);
        files.makeDirectory(sandbox, "empty");
        int made = CLIENT.getStatusCode();
        Map<String, Object> wrong = refused(() -> files.readFile(sandbox, "notes", null, null, null, null, null, null));
        return List.of(Arrays.equals(data, Files.readAllBytes(back.toPath())),
                listed.stream().map(DirectoryItem::getName).toList(),
                Arrays.equals(data, Files.readAllBytes(copy.toPath())), made, wrong.get("type"), wrong.get("found"));
    }

    static List<Object> runAtOnce(ExecutionsApi executions) throws Exception {
        // [run]
        Run request = new Run().command(List.of("cat")).stdin("hello\n")
                .addFilesItem(new RunFile().path("data.txt").content("beside it"));
        RunResult result = executions.runOnce(request, "run-1-of-java");
        System.out.println(result.getExit().getReason() + " " + result.getStdout());
        // [end]
        RunResult again = executions.runOnce(request, "run-1-of-java");
        Run other = request.stdin("something else");
        return List.of(result.getStdout(), again.getSandboxId().equals(result.getSandboxId()),
                refused(() -> executions.runOnce(other, "run-1-of-java")));
    }

    public static void main(String[] arguments) throws Exception {
        // [use]
        SandboxesApi sandboxes = new SandboxesApi(CLIENT); // new ApiClient().setBasePath(URL).setBearerToken(KEY)
        ExecutionsApi executions = new ExecutionsApi(CLIENT);

        CreateSandbox request = new CreateSandbox().id("build-java").putLabelsItem("team", "ci")
                .limits(new LimitsRequest().memoryMib(64L));
        Sandbox sandbox = sandboxes.createSandbox(request, null, null);
        CreateExecution command = new CreateExecution().command(List.of("echo", "hello")).timeoutSeconds(10.0);
        Execution execution = executions.createExecution(sandbox.getId(), command, null, null);
        execution = executions.getExecution(sandbox.getId(), execution.getId(), 30.0);
        String output = Files.readString(
                executions.getOutput(sandbox.getId(), execution.getId(), Channel.STDOUT, null, null, null).toPath());
        System.out.println(execution.getExit().getReason() + " " + execution.getExit().getCode() + " " + output);
        // [end]

        CreateExecution lost = new CreateExecution().command(List.of("missing"));
        Execution missing = executions.createExecution(sandbox.getId(), lost, null, null);
        missing = executions.getExecution(sandbox.getId(), missing.getId(), 30.0);
        List<Object> idle = new ArrayList<>();
        for (Double seconds : new Double[] {60.0, null}) {
            idle.add(sandboxes.updateSandbox(sandbox.getId(), new UpdateSandbox().idleSeconds(seconds)).getIdleSeconds());
        }
        CreateExecution cat = new CreateExecution().command(List.of("cat")).stdin(Stdin.OPEN);
        Talk talk = new Talk(sandbox.getId(), executions.createExecution(sandbox.getId(), cat, null, null).getId(), "over the wire\n");
        StreamExit ended = talk.exit.get(30, TimeUnit.SECONDS);
        ApiClient unknown = new ApiClient().setBasePath(URL);

        Map<String, Object> report = new TreeMap<>();
        report.put("sandbox", List.of(sandbox.getId(), sandbox.getState(), sandbox.getLabels(), sandbox.getLimits().getMemoryMib()));
        sandboxes.createSandbox(request, null, null);
        report.put("again", CLIENT.getStatusCode());
        report.put("output", List.of(execution.getExit().getCode(), output));
        report.put("missing", missing.getExit().getReason());
        report.put("idle", idle);
        report.put("stream", List.of(talk.stdout.toString(StandardCharsets.UTF_8), ended.getExitCode(), ended.getExit().getReason()));
        report.put("files", keepFiles(new FilesApi(CLIENT), sandbox.getId()));
        report.put("run", runAtOnce(executions));
        CreateSandbox tooHigh = new CreateSandbox().limits(new LimitsRequest().memoryMib(1L << 40));
        report.put("problems", List.of(
                refused(() -> sandboxes.createSandbox(tooHigh, null, null)),
                refused(() -> sandboxes.createSandbox(new CreateSandbox().ttlSeconds(-1.0), null, null)),
                refused(() -> sandboxes.getSandbox("nobody", null)),
                refused(() -> new SandboxesApi(unknown).getSandbox(sandbox.getId(), null))));
        sandboxes.deleteSandbox(sandbox.getId());
        report.put("deleted", CLIENT.getStatusCode());
        report.put("state", sandboxes.getSandbox(sandbox.getId(), null).getState());
        System.out.println(MAPPER.writeValueAsString(report));
    }
}
