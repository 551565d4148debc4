// As a Java program for this gateway: a POST with all fields in the query and an empty body.

import java.io.InputStream;
import java.io.PrintStream;
import java.math.BigInteger;
import java.net.HttpURLConnection;
import java.net.URL;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

public class QueryPost {
    static String found(String pattern, String text) {
        Matcher matcher = Pattern.compile(pattern).matcher(text);
        return matcher.find() ? matcher.group(1) : "none";
    }

    public static void main(String[] given) throws Exception {
        long time = System.currentTimeMillis() / 1000;
        String signed = given[1] + given[2] + given[3] + given[4] + time;
        byte[] digest = MessageDigest.getInstance("MD5")
            .digest(signed.getBytes(StandardCharsets.UTF_8));
        String query = "&account=" + given[1] + "&password="
            + String.format("%032x", new BigInteger(1, digest))
            + "&mobile=" + given[3] + "&content=" + given[4] + "&time=" + time + "&format=json";
        URL url = new URL(given[0] + "/webservice/voice.php?method=Submit" + query);
        HttpURLConnection connection = (HttpURLConnection) url.openConnection();
        connection.setRequestMethod("POST");
        connection.setReadTimeout(60_000);
        connection.setDoOutput(true);
        connection.getOutputStream().close();
        try (InputStream answer = connection.getInputStream()) {
            String json = new String(answer.readAllBytes(), StandardCharsets.UTF_8);
            PrintStream out = new PrintStream(System.out, true, "UTF-8");
            out.println(found("\"code\":(\\d+)", json) + " " + found("\"msg\":\"([^\"]*)\"", json)
                + " " + found("\"voiceid\":\"(\\d+)\"", json));
        }
    }
}
