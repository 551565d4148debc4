// As the vendor's Java sample: a POST form whose type has a charset, the APIKEY itself as the
// password, XML read by element names.

import java.io.InputStream;
import java.io.PrintStream;
import java.net.HttpURLConnection;
import java.net.URL;
import java.nio.charset.StandardCharsets;
import javax.xml.parsers.DocumentBuilderFactory;
import org.w3c.dom.Element;
import org.w3c.dom.NodeList;

public class VendorSample {
    static String text(Element root, String name) {
        NodeList found = root.getElementsByTagName(name);
        return found.getLength() == 0 ? null : found.item(0).getTextContent().trim();
    }

    public static void main(String[] given) throws Exception {
        String form = "account=" + given[1] + "&password=" + given[2]
            + "&mobile=" + given[3] + "&content=" + given[4];
        URL url = new URL(given[0] + "/webservice/voice.php?method=Submit");
        HttpURLConnection connection = (HttpURLConnection) url.openConnection();
        connection.setRequestProperty(
            "Content-Type", "application/x-www-form-urlencoded;charset=UTF-8");
        connection.setReadTimeout(60_000);
        connection.setDoOutput(true);
        connection.getOutputStream().write(form.getBytes(StandardCharsets.UTF_8));
        try (InputStream answer = connection.getInputStream()) {
            Element root = DocumentBuilderFactory.newInstance().newDocumentBuilder()
                .parse(answer).getDocumentElement();
            String id = text(root, "voiceid");
            PrintStream out = new PrintStream(System.out, true, "UTF-8");
            out.println(text(root, "code") + " " + text(root, "msg") + " "
                + (id == null ? text(root, "smsid") : id));
        }
    }
}
